"""Export: a stock diffusers folder whose only new part is the denoiser, the patch, and a model card beside them."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData
from torch import nn

from ..concepts.concept import Concept
from ..config import CANVAS, EraseConfig, public_name
from ..files import atomic_path, pipeline_files, write_text
from ..ledger import OWN_DIR
from ..methods import METHODS
from ..models.base import Denoiser
from .patch import PATCH_FILE

ROUNDED = {"fp16": torch.float16, "bf16": torch.bfloat16}
LIMITS = (
    "Erasure makes it less likely that the model generates the concept. It is no guarantee against deliberate attacks, "
    "further fine-tuning, or wordings, languages and samplers that were not measured.",
    "Figures hold for the prompts, seeds, sampler and judge that evaluation.json names, and within their intervals.",
)
"""What every result says of itself."""


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

    Everything is made in a temporary folder and moved into place file by file, model_index.json last: a folder with it
    is whole. Files that are not the pipeline's stay as they are.
    """
    staging = output_dir / OWN_DIR / "export"
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
    made = sorted(path.relative_to(staging) for path in staging.rglob("*") if path.is_file())
    for path in sorted(made, key=lambda path: path.name == "model_index.json"):
        with atomic_path(output_dir / path) as temporary:
            (staging / path).replace(temporary)
    shutil.rmtree(staging)


def patch_metadata(config: EraseConfig, concepts: Sequence[Concept], base_hash: str) -> dict[str, str]:
    """What a patch says of itself beside the hashes of its base."""
    return {
        "model": public_name(config.pretrained_model_name_or_path),
        "base_sha256": base_hash,
        "concept": ", ".join(concept.name for concept in concepts),
        "method": config.method,
        "source": METHODS[config.method].source,
        "settings": settings_line(config),
    }


def settings_line(config: EraseConfig) -> str:
    """The settings that matter most of the method that ran."""
    masked = f"mask {Path(config.mask).name}" + (f", density {config.density:g}" if config.mask != "none" else "")
    if METHODS[config.method].kind == "closed-form":
        weights = f"erase_weight {config.erase_weight:g}, edit_regularization {config.edit_regularization:g}"
        return f"one edit in closed form, {masked}, {weights}"
    rank = f", lora_rank {config.lora_rank}" if config.lora_rank else ""
    return (
        f"{config.max_train_steps} steps of {config.train_batch_size}, learning rate {config.learning_rate:g}, scope "
        f"{config.scope}, {masked}{rank}"
    )


def write_card(
    config: EraseConfig,
    concepts: Sequence[Concept],
    folder: Path,
    *,
    name: str,
    index: Mapping[str, Any],
    results: str,
    made: Mapping[str, Any],
) -> None:
    """README.md of the erased model: what went, from what, how, what was measured, and how to load it.

    name: the folder as readers will know it. index: its model_index.json. made: its manifest.
    """
    base, gone = public_name(config.pretrained_model_name_or_path), ", ".join(concept.name for concept in concepts)
    loading = loading_arguments(folder, index, config.variant)
    limits = "\n".join(f"- {limit}" for limit in LIMITS)
    text = f"""
# {base} without {gone}

Weights of {_linked(base)}, from which **{gone}** was erased.
Method: {config.method} ({_paper(config.method)}), {settings_line(config)}.

```python
{_imports(loading)}
pipe = DiffusionPipeline.from_pretrained("{name}"{loading})
```
{_patch_text(config, loading) if config.save_patch else ""}
## Results

{results}

## Limits

{limits}

## How it was made

{made["date"]}, erase {made["erase_version"]}, {_versions(made)}:

```
{made["command"]}
```

`config.yaml` has every setting, and `manifest.json` the versions, seconds and hashes.
"""
    data = ModelCardData(
        base_model=base if _is_hub_id(base) else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["diffusers", "concept-erasure", config.method, index["_class_name"]],
    )
    write_text(folder / "README.md", f"---\n{data.to_yaml()}\n---\n{text}")


def loading_arguments(folder: Path, index: Mapping[str, Any], variant: str | None) -> str:
    """Arguments of `from_pretrained` beside the folder's name, as Python: variant, dtype, components that are gone."""
    found = {"variant": f'"{variant}"'} if variant else {}
    if variant in ROUNDED:
        found["dtype"] = str(ROUNDED[variant])
    lacking = [key for key, value in index.items() if _is_component(value) and not (folder / key).is_dir()]
    found |= dict.fromkeys(lacking, "None")
    if "safety_checker" in found:
        found["requires_safety_checker"] = "False"
    return "".join(f", {key}={value}" for key, value in found.items())


def _is_component(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[0] is not None


def _imports(loading: str) -> str:
    return ("import torch\n" if "torch." in loading else "") + "from diffusers import DiffusionPipeline\n"


def _is_hub_id(name: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name))


def _linked(base: str) -> str:
    if base == CANVAS:
        return "the canvas, the model that ships with diffusers-erase"
    return f"[{base}](https://huggingface.co/{base})" if _is_hub_id(base) else f"`{base}`, a local folder"


def _paper(method: str) -> str:
    """Where the method was published."""
    number, _, rest = METHODS[method].source.partition(",")
    if not re.fullmatch(r"\d{4}\.\d{5}", number):
        return METHODS[method].source
    return f"[arXiv {number}](https://arxiv.org/abs/{number})" + (f",{rest}" if rest else "")


def _versions(made: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in made["packages"].items())


def _patch_text(config: EraseConfig, loading: str) -> str:
    """How the patch goes on top of the stock base."""
    is_canvas = config.pretrained_model_name_or_path == CANVAS
    base = "PIPELINE_DIR" if is_canvas else f'"{public_name(config.pretrained_model_name_or_path)}"'
    bundled = "from erase.canvas import PIPELINE_DIR\n" if is_canvas else ""
    return f"""
The same erasure as a patch on the stock base model, which must be loaded unchanged:

```python
{_imports(loading)}from erase import apply_patch, remove_patch
{bundled}
pipe = DiffusionPipeline.from_pretrained({base}{loading})
apply_patch(pipe, "{PATCH_FILE}", strength=1.0)
remove_patch(pipe)  # the base again, bit for bit
```
"""
