"""Export: a stock diffusers folder whose only new part is the denoiser, the patch, and a model card beside them."""

import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData
from torch import nn

from .config import CANVAS, EraseConfig
from .files import pipeline_files, write_text
from .models.base import Denoiser
from .patch import PATCH_FILE

ROUNDED = {"fp16": torch.float16, "bf16": torch.bfloat16}


def needed_bytes(folder: Path) -> int:
    """Disk space that an export of this base takes: its files, the denoiser in float32, a patch and a checkpoint."""
    return 3 * sum((folder / path).stat().st_size for path in pipeline_files(folder))


def check_disk(folder: Path, output_dir: Path) -> None:
    """Refuse to start a job whose result will not fit."""
    existing = next(path for path in (output_dir, *output_dir.resolve().parents) if path.exists())
    free, needed = shutil.disk_usage(existing).free, needed_bytes(folder)
    if free < needed:
        raise ValueError(
            f"Too little disk for {output_dir}: the result may need {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are "
            "free. Free some space or choose another --output_dir."
        )


@torch.no_grad()
def round_to_variant(module: nn.Module, variant: str | None) -> None:
    """Round float32 weights to what the variant's files can hold, so that patch and folder hold the same numbers.

    Weights that did not move came from such files and stay bit-equal.
    """
    if variant in ROUNDED:
        for parameter in module.parameters():
            parameter.copy_(parameter.to(ROUNDED[variant]))


def export_pipeline(denoiser: Denoiser, base: Path, output_dir: Path, variant: str | None = None) -> None:
    """Write the pipeline into `output_dir`: unchanged components byte for byte, the denoiser anew.

    Everything is made in a temporary folder and moved into place, model_index.json last: a folder with it is whole.
    """
    staging = output_dir / ".export"
    shutil.rmtree(staging, ignore_errors=True)
    for path in pipeline_files(base):
        if path.parts[0] != denoiser.component:
            (staging / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base / path, staging / path)
    module: Any = denoiser.module
    # Module.to rather than the model's own, which warns of layers to keep in float32 even where there are none.
    nn.Module.to(module, ROUNDED.get(variant or "", torch.float32))
    module.save_pretrained(staging / denoiser.component, safe_serialization=True, variant=variant)
    module.float()
    index = staging / "model_index.json"
    for part in sorted(path for path in staging.iterdir() if path != index):
        shutil.rmtree(output_dir / part.name, ignore_errors=True)
        part.replace(output_dir / part.name)
    index.replace(output_dir / "model_index.json")
    staging.rmdir()


def write_card(config: EraseConfig, output_dir: Path, pipeline_class: str, results: str) -> None:
    """README.md of the erased model: what went, from what, how, what was measured, and how to load it."""
    concepts = ", ".join(config.concept)
    patch = f"""
The same erasure as a patch on the stock base model:

```python
from diffusers import DiffusionPipeline
from erase import apply_patch, remove_patch

pipe = DiffusionPipeline.from_pretrained(base)
apply_patch(pipe, "{PATCH_FILE}", strength=1.0)
remove_patch(pipe)  # the base again, bit for bit
```
"""
    text = f"""
# {config.pretrained_model_name_or_path} without {concepts}

Weights of `{config.pretrained_model_name_or_path}` from which **{concepts}** was erased with {config.method}
(arXiv 2310.12508): mask `{config.mask}`, density {config.density:g}, {config.max_train_steps} steps,
learning rate {config.learning_rate:g}.

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{output_dir.name}")
```
{patch if config.save_patch else ""}
## Results

{results}

## Limits

Erasure lowers the chance that a concept is drawn; it is no guarantee against deliberate attacks or further fine-tuning.
`config.json` and `manifest.json` beside this card say exactly how the model was made.
"""
    data = ModelCardData(
        base_model=None if config.pretrained_model_name_or_path == CANVAS else config.pretrained_model_name_or_path,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["diffusers", "concept-erasure", "salun", pipeline_class],
    )
    write_text(output_dir / "README.md", f"---\n{data.to_yaml()}\n---\n{text}")
