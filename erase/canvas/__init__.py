"""The emoji canvas: a small, complete Stable Diffusion that ships with the package, and the judge that scores it.

Twenty objects in six styles, so that erasing and retaining are both measurable on a laptop's CPU in minutes.
The order of the two tuples is the order of the judge's output classes.
"""

from pathlib import Path

OBJECTS = (
    "cat", "dog", "apple", "car", "house", "tree", "fish", "sunflower", "rocket", "umbrella",
    "guitar", "bicycle", "butterfly", "mushroom", "penguin", "pizza", "balloon", "crown", "snowman", "octopus",
)  # fmt: skip
STYLES = ("photo", "sketch", "pixel art", "watercolor", "neon", "blueprint")
RESOLUTION = 64

_WEIGHTS = Path(__file__).parent / "weights"
PIPELINE_DIR = _WEIGHTS / "pipeline"
JUDGE_DIR = _WEIGHTS / "judge"
ENCODER_DIR = _WEIGHTS / "encoder"
REFERENCE_FILE = _WEIGHTS / "reference.safetensors"
SHEET_FILE = _WEIGHTS / "sheet.png"
