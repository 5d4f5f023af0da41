"""Which model of transformers a flag takes: looked at by configuration and headers, before any picture is drawn.

Each check raises a ValueError that says what was given, what was expected, and which flag or class is right.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

Need = Callable[[Path, Any], None]
"""Check of a model's folder and its configuration."""
PROJECTION = "visual_projection.weight"


def need_vision(folder: Path, config: Any) -> None:
    """A model of pictures alone, for --encoder."""
    model = _model(config)
    if model is None or model.main_input_name == "pixel_values":
        return
    if not hasattr(config, "vision_config"):
        raise ValueError(
            f"{folder} is a {model.__name__}, which does not read pictures; --encoder takes a vision model, such as "
            "facebook/dinov2-base."
        )
    half = _model(config.vision_config)
    name = "its vision model" if half is None else half.__name__
    clip = "Give it with --cmmd_model (CMMD) or --clip_model (CLIP score), or save" if _is_clip(config) else "Save"
    raise ValueError(
        f"{folder} is a {model.__name__}, which also reads text; --encoder (fd_encoder) takes a model of pictures "
        f"alone. {clip} its vision half: {name}.from_pretrained({str(folder)!r}).save_pretrained(FOLDER), with "
        "preprocessor_config.json copied beside it."
    )


def need_clip(folder: Path, config: Any) -> None:
    """A CLIP with both halves, for --clip_model."""
    if config.model_type != "clip":
        raise ValueError(
            f"{folder} is a {_name(config)}, and the CLIP score compares pictures with prompts: --clip_model takes a "
            f"CLIPModel with its tokenizer, such as openai/clip-vit-base-patch32.{_for_vision(config)}"
        )


def need_clip_vision(folder: Path, config: Any) -> None:
    """A CLIP, or its vision half with the projection, for --cmmd_model."""
    if not _is_clip(config):
        raise ValueError(
            f"{folder} is a {_name(config)}, and CMMD is defined with CLIP: --cmmd_model takes a CLIPModel or "
            f"a CLIPVisionModelWithProjection.{_for_vision(config)}"
        )
    if PROJECTION not in weight_names(folder):
        raise ValueError(
            f"{folder} is a CLIP without {PROJECTION}, which makes its embeddings; --cmmd_model takes a CLIPModel or a "
            "CLIPVisionModelWithProjection, not a CLIPVisionModel (that one serves --encoder)."
        )


def need_classifier(folder: Path, config: Any) -> None:
    """A model that was saved with a head for image classes, for --classifier and its kin."""
    saved = config.architectures or ()
    if saved and not any("ForImageClassification" in name for name in saved):
        raise ValueError(
            f"{folder} is a {', '.join(saved)}, which has no trained head for classes of pictures; a classifier is a "
            "model saved as …ForImageClassification, such as microsoft/resnet-50."
        )


def weight_names(folder: Path) -> set[str]:
    """Names of the weights in a folder's safetensors files, by their headers."""
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "numpy") as file:
                names |= set(file.keys())
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}); copy or download it again.") from error
    return names


def _model(config: Any) -> Any:
    """The class that AutoModel makes of a configuration; None where that depends on more than its type."""
    from transformers import MODEL_MAPPING

    found = MODEL_MAPPING.get(type(config), None)
    return found if isinstance(found, type) else None


def _name(config: Any) -> str:
    model = _model(config)
    return config.model_type if model is None else model.__name__


def _is_clip(config: Any) -> bool:
    return config.model_type in ("clip", "clip_vision_model")


def _for_vision(config: Any) -> str:
    model = _model(config)
    return " A vision model serves --encoder." if model and model.main_input_name == "pixel_values" else ""
