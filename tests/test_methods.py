"""Methods, scopes, masks, adapters and model families compose by flags, and what does not compose says so at once.

Whatever the method, only weights in its scope and mask move, the export loads in plain diffusers, and a killed run
ends bit-equal.
"""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from erase import EraseConfig, SaliencyMask, apply_patch, erase, load_denoiser
from erase.closed_form.edit import edited_weights
from erase.config import CONFIGS_DIR, MethodName, read_config
from erase.export.patch import PATCH_FILE
from erase.layout import MASK_FILE
from erase.methods import METHODS, Scope
from erase.saliency.scopes import SCOPES
from erase.trained.objectives import OBJECTIVES
from tiny import FAMILIES

TinyFolder = Callable[[str], Path]
CHANGING = [name for name, method in METHODS.items() if method.kind != "inference"]
TRAINED = [name for name, method in METHODS.items() if method.kind == "trained"]
SMALL = {
    "concept": ("imagenette/church",),
    "num_concept_images": 4,
    "num_anchor_images": 4,
    "num_retain_images": 4,
    "data_num_inference_steps": 3,
    "data_batch_size": 2,
    "train_batch_size": 2,
    "max_train_steps": 3,
    "lr_warmup_steps": 0,
    "learning_rate": 1e-2,
    "mixed_precision": "no",
    "edit_regularization": 0.01,
}


@pytest.fixture
def config(tiny: TinyFolder, tmp_path: Path) -> Callable[..., EraseConfig]:
    def make(method: str, family: str = "sd1", **changes: object) -> EraseConfig:
        settings = SMALL | {
            "method": method,
            "pretrained_model_name_or_path": str(tiny(family)),
            "output_dir": tmp_path / "out",
            "data_cache_dir": tmp_path / "cache",
        }
        return EraseConfig.load(None, **(settings | changes))

    return make


def weights(folder: Path, component: str = "unet") -> dict[str, torch.Tensor]:
    (file,) = (folder / component).glob("*.safetensors")
    return load_file(file)


def moved(base: Path, erased: Path, component: str = "unet") -> dict[str, torch.Tensor]:
    before, after = weights(base, component), weights(erased, component)
    assert before.keys() == after.keys()
    return {name: before[name].view(torch.int32) != weight.view(torch.int32) for name, weight in after.items()}


def draw(folder: Path, patch: Path | None = None) -> np.ndarray:
    pipe = DiffusionPipeline.from_pretrained(folder)
    if patch:
        apply_patch(pipe, patch)
    generator = torch.Generator().manual_seed(1)
    return pipe("a church", num_inference_steps=2, output_type="np", generator=generator).images


def served(method: str, family: str) -> bool:
    """SD3's joint attention has no layers for ESD-x, and no attention maps for Forget-Me-Not."""
    preset = read_config(CONFIGS_DIR / "methods" / f"{method}.yaml")
    return family != "sd3" or (preset.get("scope", "full") == "full" and not METHODS[method].needs_cross_attention)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", CHANGING)
def test_method_by_family(method: str, family: str, config: Callable[..., EraseConfig], tiny: TinyFolder) -> None:
    settings = config(method, family, density=0.5)
    if not served(method, family):
        with pytest.raises(ValueError, match="StableDiffusionXLPipeline"):
            erase(settings)
        assert not settings.output_dir.exists()
        return
    if method == "speed" and family in ("sd1", "sd2"):
        with pytest.raises(ValueError, match="fills all"):  # directions of a toy's text embedding
            erase(settings)
        return
    out = erase(settings)
    component = "transformer" if family == "sd3" else "unet"
    places = moved(tiny(family), out, component)
    assert any(place.any() for place in places.values())
    mask = SaliencyMask.load(out / MASK_FILE).tensors
    for name, place in places.items():
        assert not (place & ~mask.get(name, torch.zeros_like(place))).any(), name
    erased = draw(out)
    assert not np.array_equal(erased, draw(tiny(family)))
    assert np.array_equal(erased, draw(tiny(family), out / PATCH_FILE))


@pytest.mark.parametrize("mask", ["none", "salient", "random"])
@pytest.mark.parametrize("scope", get_args(Scope))
def test_scope_by_mask(scope: str, mask: str, config: Callable[..., EraseConfig], tiny: TinyFolder) -> None:
    out = erase(config("salun", scope=scope, mask=mask, density=0.25))
    component = "text_encoder" if scope == "text-encoder" else "unet"
    module = load_denoiser(str(tiny("sd1")), scope=scope).module  # type: ignore[arg-type]
    allowed = SCOPES[scope]  # type: ignore[index]
    within = sum(p.numel() for name, p in module.named_parameters() if allowed(name))
    kept = SaliencyMask.load(out / MASK_FILE)
    assert kept.count == pytest.approx(within * (1.0 if mask == "none" else 0.25), abs=1)
    assert {name for name, chosen in kept.tensors.items() if chosen.any()} <= {*filter(allowed, kept.tensors)}
    places = moved(tiny("sd1"), out, component)
    assert any(place.any() for place in places.values())
    other = "unet" if component == "text_encoder" else "text_encoder"
    for file in (tiny("sd1") / other).iterdir():
        assert (out / other / file.name).read_bytes() == file.read_bytes()
    assert np.array_equal(draw(out), draw(tiny("sd1"), out / PATCH_FILE))


@pytest.mark.parametrize("mask", ["salient", "random"])
@pytest.mark.parametrize("family", FAMILIES)
def test_closed_forms_touch_nothing_but_keys_and_values_and_obey_a_mask(
    family: str, mask: str, config: Callable[..., EraseConfig], tiny: TinyFolder
) -> None:
    out = erase(config("recommended", family, mask=mask, density=0.5))
    places = moved(tiny(family), out, "transformer" if family == "sd3" else "unet")
    edited = edited_weights(load_denoiser(str(tiny(family))).module)
    chosen = SaliencyMask.load(out / MASK_FILE).tensors
    count = sum(int(chosen[name].sum()) for name in edited)
    assert count == round(0.5 * sum(weight.numel() for weight in edited.values()))
    assert count == SaliencyMask.load(out / MASK_FILE).count
    assert 0 < sum(int(place.sum()) for place in places.values()) <= count
    assert not any(bool((place & ~chosen[name]).any()) for name, place in places.items() if name in chosen)
    assert not list((out / "..").resolve().glob("cache/latents*")), "pictures were made that nothing reads"


@pytest.mark.parametrize(
    "method,changes",
    [
        ("esd-u", {}),
        ("leco", {}),
        ("erasediff", {}),
        ("forget-me-not", {"scope": "text-encoder"}),
        ("salun-anchored", {"forget_x": "trajectories", "balance": "project"}),
    ],
)
def test_interrupted_run_ends_bit_equal(
    method: str,
    changes: dict,
    config: Callable[..., EraseConfig],
    tmp_path: Path,
    interrupt: Callable[[EraseConfig], None],
) -> None:
    settings = {"checkpointing_steps": 1, "lr_scheduler": "linear"} | changes
    whole = erase(config(method, output_dir=tmp_path / "whole", **settings))
    interrupt(config(method, output_dir=tmp_path / "stopped", **settings))
    resumed = erase(config(method, output_dir=tmp_path / "stopped", resume_from_checkpoint="latest", **settings))
    component = "text_encoder" if settings.get("scope") == "text-encoder" else "unet"
    for name, weight in weights(whole, component).items():
        assert torch.equal(weight, weights(resumed, component)[name]), name


def test_adapter_is_exported_beside_the_merged_weights(config: Callable[..., EraseConfig], tiny: TinyFolder) -> None:
    out = erase(config("leco"))
    pipe = DiffusionPipeline.from_pretrained(tiny("sd1"))
    pipe.load_lora_weights(out)
    generator = torch.Generator().manual_seed(1)
    lora = pipe("a church", num_inference_steps=2, output_type="np", generator=generator).images
    np.testing.assert_allclose(lora, draw(out), atol=2e-3)
    assert not np.allclose(lora, draw(tiny("sd1")), atol=2e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_trajectories_are_what_the_sampler_passes_through(family: str, tiny: TinyFolder) -> None:
    """Going on from a kept latent, step by step, ends at the sampler's own result."""
    denoiser = load_denoiser(str(tiny(family)))
    end = denoiser.sample_latents(["a church"], [5], 4, 1.0)
    x, t = denoiser.sample_trajectories(["a church"], [5], 4, 1.0, points=10)
    assert x.shape[1] == t.shape[1] == 3 and x.shape[2:] == end.shape[1:]
    scheduler = denoiser.pipeline.scheduler
    scheduler.set_timesteps(4)
    torch.testing.assert_close(t[0].float(), scheduler.timesteps[1:].float())
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(3)
    with torch.no_grad():
        output = denoiser.predict(x[:, 2], t[:, 2], denoiser.encode(["a church"]))
    last = scheduler.step(output, scheduler.timesteps[3], x[:, 2], return_dict=False)[0]
    torch.testing.assert_close(last, end, rtol=1e-3, atol=1e-3)


def test_fewer_points_are_a_choice_by_seed_alone(tiny: TinyFolder) -> None:
    denoiser = load_denoiser(str(tiny("sd1")))
    both, times = denoiser.sample_trajectories(["a church", "a dog"], [5, 6], 6, 3.0, points=2)
    one, t = denoiser.sample_trajectories(["a dog"], [6], 6, 3.0, points=2)
    assert torch.equal(times[1:], t) and bool((times.diff() < 0).all())
    torch.testing.assert_close(both[1:], one, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="at least 2"):
        denoiser.sample_trajectories(["a dog"], [6], 1, 3.0)


@pytest.mark.parametrize(
    "method,changes,message",
    [
        ("sld", {}, "--guard sld-medium"),
        ("uce", {"scope": "self-attention"}, "leave out --scope"),
        ("rece", {"lora_rank": 4}, "lora_rank 4"),
        ("speed", {"mask": "salient"}, "null space"),
        ("leco", {"mask": "salient"}, "--mask none"),
        ("salun-soft", {"lora_rank": 2, "mask": "none"}, "takes no --lora_rank"),
        ("forget-me-not", {"scope": "self-attention"}, "--scope cross-attention"),
        ("forget-me-not", {"gradient_checkpointing": True}, "gradient_checkpointing"),
        ("gradient-ascent", {"forget_x": "trajectories"}, "--forget_x pictures"),
        ("salun", {"balance": "project", "alpha": 0.0}, "retains nothing"),
        ("salun", {"alpha": -1.0}, "alpha"),
        ("salun", {"mask_score": "pursuit"}, "only closed forms"),
        ("salun-anchored", {"num_anchor_images": 0}, "num_anchor_images"),
        ("esd", {}, "method must be one of"),
    ],
)
def test_what_does_not_compose_is_refused_before_anything_is_loaded(
    method: str, changes: dict, message: str, config: Callable[..., EraseConfig]
) -> None:
    with pytest.raises(ValueError, match=message):
        config(method, pretrained_model_name_or_path="no/such-model", **changes)


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_text_encoder_scope_names_the_models_that_have_it(family: str, config: Callable[..., EraseConfig]) -> None:
    with pytest.raises(ValueError, match=r"--scope text-encoder cannot.*StableDiffusionPipeline"):
        erase(config("salun", family, scope="text-encoder"))


def test_names_agree_and_every_method_has_its_settings_and_its_page() -> None:
    assert set(get_args(MethodName)) == set(METHODS)
    assert {METHODS[method].objective for method in TRAINED} == set(OBJECTIVES)
    docs = CONFIGS_DIR.parent / "docs" / "methods"
    assert {path.stem for path in docs.glob("*.md")} >= set(METHODS)
    for method in CHANGING:
        preset = read_config(CONFIGS_DIR / "methods" / f"{method}.yaml")
        assert preset["method"] == method
        assert EraseConfig.load(None, concept="canvas/cat", method=method).method == method
        on_canvas = EraseConfig.load(None, concept="cat", method=method, pretrained_model_name_or_path="canvas")
        assert on_canvas.num_concept_images == 120
    assert EraseConfig.load(None, concept="nudity").method == "salun"
    assert EraseConfig.load(None, concept="cat", pretrained_model_name_or_path="canvas").method == "recommended"


def test_own_values_stand_above_the_methods(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("method: esd-x\nnegative_guidance: 2.5\n")
    config = EraseConfig.load(tmp_path / "mine.yaml", concept="nudity")
    assert (config.scope, config.negative_guidance, config.target) == ("cross-attention", 2.5, "frozen")
    assert EraseConfig.load(tmp_path / "mine.yaml", concept="nudity", scope="full").scope == "full"
