"""A single file that somebody gave as a model: what it is, by its header alone, and what to do with it.

Neither torch nor diffusers is imported here, and no pickle is opened.
"""

from pathlib import Path
from typing import NoReturn

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
"""Weights that can run code when they are loaded."""
# How the tensors' names begin in the files of the original code bases, the most telling first.
_ORIGINAL = {
    "StableDiffusion3Pipeline": "model.diffusion_model.joint_blocks.",
    "StableDiffusionXLPipeline": "conditioner.embedders.",
    "StableDiffusionPipeline": "model.diffusion_model.",
}
_DENOISER = ("down_blocks.", "up_blocks.", "mid_block.", "transformer_blocks.")
"""Parts of the tensors' names in diffusers' denoisers."""


def is_checkpoint(path: Path) -> bool:
    """Whether a file may hold a model's weights, by its suffix."""
    return path.suffix in (".safetensors", *PICKLES) and path.is_file()


def conversion(path: Path, pipeline: str = "StableDiffusionPipeline") -> str:
    """How a whole model in a single file becomes a pipeline's folder, as a sentence."""
    return (
        "Convert it once, with a network or with config=FOLDER of a pipeline of its kind, and give the new folder:\n"
        f"  python -c \"from diffusers import {pipeline} as P; P.from_single_file('{path}').save_pretrained('FOLDER')\""
    )


def refuse_file(path: Path, on_top: bool = False) -> NoReturn:
    """ValueError that says what the file is and how to use it; `on_top`: the command has --patch and --unet_weights."""
    if path.suffix == ".safetensors":
        raise ValueError(f"{path} {_described(path, on_top)}")
    if path.suffix not in PICKLES:
        raise ValueError(f"{path} is a file, where a diffusers folder (the one with model_index.json) was expected.")
    weights = " Weights of a denoiser alone go on top of their base: --unet_weights, as safetensors." if on_top else ""
    raise ValueError(
        f"{path} is a single pickled file, where a diffusers folder was expected; a pickle can run any code when it is "
        f"loaded.{weights} If it is a whole model, and you trust it (SDXL: StableDiffusionXLPipeline): "
        f"{conversion(path)}"
    )


def _described(path: Path, on_top: bool) -> str:
    """What a safetensors file is and what to do with it; completes the sentence that its path begins."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            names, metadata = list(file.keys()), dict(file.metadata() or {})
    except SafetensorError as error:
        return f"is not a whole safetensors file ({error}), and no diffusers folder. Copy or download it again."
    if pipeline := next((kind for kind, start in _ORIGINAL.items() if any(n.startswith(start) for n in names)), None):
        return f"is a whole model in a single file, where a diffusers folder was expected. {conversion(path, pipeline)}"
    if metadata.get("format", "").startswith("erase.patch/"):
        return f"is a patch, no model. {_on_top('--patch', on_top)}"
    if any("lora" in name.lower() for name in names):
        return (
            "is a LoRA, no model. Load it into its base with diffusers' `load_lora_weights`, then `fuse_lora`, "
            "`unload_lora_weights` and `save_pretrained`, and give the new folder."
        )
    if any(part in name for name in names for part in _DENOISER):
        return f"holds the weights of a denoiser alone, no whole model. {_on_top('--unet_weights', on_top)}"
    return f"is a file of tensors ({', '.join(names[:3]) or 'none'}), where a diffusers folder was expected."


def _on_top(flag: str, has_flag: bool) -> str:
    if has_flag:
        return f"Give its base as the model, and this file with {flag}."
    return f"`erase generate` and `erase evaluate` put it on its base with {flag}; here, give a diffusers folder."
