"""One run, end to end, on every model family.

Weights outside the mask keep their bits; the export draws the same pictures in plain diffusers; patch and export agree;
a killed and resumed run ends bit-equal; two processes with half the batch agree with one.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from erase import EraseConfig, SaliencyMask, apply_patch, erase, load_concepts, remove_patch
from erase.export.patch import PATCH_FILE
from erase.layout import MASK_FILE
from erase.run import build_only_mask
from erase.runtime import devices
from tiny import FAMILIES

TinyFolder = Callable[[str], Path]
COMPONENT = {"sd1": "unet", "sd2": "unet", "sdxl": "unet", "sd3": "transformer"}
SMALL = {
    "concept": ("imagenette/church",),
    "density": 0.1,
    "num_concept_images": 4,
    "num_retain_images": 4,
    "data_num_inference_steps": 2,
    "data_batch_size": 2,
    "train_batch_size": 2,
    "max_train_steps": 2,
    "learning_rate": 1e-3,
    "mixed_precision": "no",
}
# The reader of an export: plain diffusers, in a process that must not find this package. A patch needs it, of course.
DRAW = """
import sys
sys.modules["erase"] = None
import numpy, torch
from diffusers import DiffusionPipeline
torch.set_num_threads(1)
export, base, patch, out = sys.argv[1:]

def save(pipe, name):
    generator = torch.Generator().manual_seed(1)
    picture = pipe("a church", num_inference_steps=2, output_type="np", generator=generator).images
    numpy.save(f"{out}/{name}.npy", picture)

save(DiffusionPipeline.from_pretrained(export), "export")
pipe = DiffusionPipeline.from_pretrained(base)
save(pipe, "base")
del sys.modules["erase"]
from erase import apply_patch
apply_patch(pipe, patch)
save(pipe, "patched")
"""


@pytest.fixture
def config(tiny: TinyFolder, tmp_path: Path) -> Callable[..., EraseConfig]:
    def make(family: str = "sd1", **changes: object) -> EraseConfig:
        settings = SMALL | {
            "pretrained_model_name_or_path": str(tiny(family)),
            "output_dir": tmp_path / "out",
            "data_cache_dir": tmp_path / "cache",
        }
        return EraseConfig(**(settings | changes))

    return make


def draw(pipe: DiffusionPipeline) -> np.ndarray:
    generator = torch.Generator().manual_seed(1)
    return pipe("a church", num_inference_steps=2, output_type="np", generator=generator).images


def denoiser_weights(folder: Path, family: str = "sd1") -> dict[str, torch.Tensor]:
    return load_file(folder / COMPONENT[family] / "diffusion_pytorch_model.safetensors")


def assert_only_inside(mask: SaliencyMask, moved: dict[str, torch.Tensor]) -> None:
    """Nothing outside the mask moved; a buffer, which no mask has, least of all."""
    for name, places in moved.items():
        allowed = mask.tensors.get(name, torch.zeros_like(places))
        assert not (places & ~allowed).any(), name


def changed(base: dict[str, torch.Tensor], erased: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: base[name].view(torch.int32) != weight.view(torch.int32) for name, weight in erased.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["salun", "salun-soft"])
def test_family_by_method(family: str, method: str, config: Callable[..., EraseConfig], tiny: TinyFolder) -> None:
    out = erase(config(family, method=method, target="frozen", soft_quantile=0.9))
    moved = changed(denoiser_weights(tiny(family), family), denoiser_weights(out, family))
    mask = SaliencyMask.load(out / MASK_FILE)
    assert any(m.any() for m in moved.values())
    assert_only_inside(mask, moved)
    if method == "salun":
        assert mask.density == pytest.approx(0.1, abs=1e-3)
    base = DiffusionPipeline.from_pretrained(tiny(family))
    before, erased = draw(base), draw(DiffusionPipeline.from_pretrained(out))
    assert not np.array_equal(before, erased)
    apply_patch(base, out / PATCH_FILE)
    assert np.array_equal(draw(base), erased)
    apply_patch(base, out / PATCH_FILE, strength=0.0)
    assert np.array_equal(draw(base), before)
    remove_patch(base)
    assert np.array_equal(draw(base), before)


def test_export_loads_where_the_package_is_absent(
    config: Callable[..., EraseConfig], tiny: TinyFolder, tmp_path: Path
) -> None:
    out = erase(config())
    command = [sys.executable, "-c", DRAW, *map(str, (out, tiny("sd1"), out / PATCH_FILE, tmp_path))]
    subprocess.run(command, check=True, cwd=tmp_path)
    export, patched, base = (np.load(tmp_path / f"{name}.npy") for name in ("export", "patched", "base"))
    assert np.array_equal(export, patched) and not np.array_equal(export, base)


def test_unchanged_components_are_copied_byte_for_byte(config: Callable[..., EraseConfig], tiny: TinyFolder) -> None:
    out = erase(config())
    for path in sorted(tiny("sd1").rglob("*")):
        name = path.relative_to(tiny("sd1"))
        if path.is_file() and name.parts[0] != "unet":
            assert (out / name).read_bytes() == path.read_bytes(), name
    expected = {"README.md", "config.yaml", "manifest.json", "losses.json", MASK_FILE, "mask.png", PATCH_FILE}
    assert expected <= {path.name for path in out.iterdir()}
    assert not list(out.glob("checkpoint-*")) and not (out / ".erase" / "export").exists()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_killed_and_resumed_run_ends_bit_equal(
    weight_decay: float, config: Callable[..., EraseConfig], tmp_path: Path
) -> None:
    settings = {
        "adam_weight_decay": weight_decay,
        "max_train_steps": 4,
        "checkpointing_steps": 2,
        "lr_scheduler": "linear",
    }
    whole = erase(config(output_dir=tmp_path / "whole", **settings))
    stop = _kill_at_step(config(output_dir=tmp_path / "killed", **settings), 3)
    assert stop.returncode == -9, stop.stderr
    assert [p.name for p in (tmp_path / "killed").glob("checkpoint-*")] == ["checkpoint-2"]
    resumed = erase(config(output_dir=tmp_path / "killed", resume_from_checkpoint="latest", **settings))
    for name, weight in denoiser_weights(whole).items():
        assert torch.equal(weight, denoiser_weights(resumed)[name]), name
    assert json.loads((whole / "losses.json").read_text()) == json.loads((resumed / "losses.json").read_text())


def _kill_at_step(config: EraseConfig, step: int) -> subprocess.CompletedProcess[str]:
    """Run in a process of its own that is killed with signal 9 in the middle of the given step."""
    program = f"""
import os, signal, sys
import torch
torch.set_num_threads(2)
import erase.trained.trainer as trainer
from erase import EraseConfig, erase
backward = trainer.Trainer._update
def update(self):
    if self.step + 1 == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
    backward(self)
trainer.Trainer._update = update
erase(EraseConfig(**{config.as_dict()!r}))
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


@pytest.fixture
def stopped(config: Callable[..., EraseConfig], interrupt: Callable[[EraseConfig], None]) -> dict[str, Any]:
    """The settings of a run that was interrupted after its checkpoint of step 2."""
    settings = {"max_train_steps": 4, "checkpointing_steps": 2}
    interrupt(config(**settings))
    return settings | {"resume_from_checkpoint": "latest"}


def test_a_refused_resume_names_the_settings_and_changes_nothing(
    config: Callable[..., EraseConfig], stopped: dict[str, Any], tmp_path: Path
) -> None:
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match=r"learning_rate: 0\.001 there, 0\.002 now"):
        erase(config(learning_rate=2e-3, **stopped))
    assert contents(tmp_path / "out") == before


def test_another_runs_checkpoint_is_refused_by_its_settings(
    config: Callable[..., EraseConfig], stopped: dict[str, Any], tmp_path: Path
) -> None:
    taken = stopped | {"resume_from_checkpoint": str(tmp_path / "out" / "checkpoint-2"), "output_dir": tmp_path / "b"}
    with pytest.raises(ValueError, match=r"belongs to another run:\n  alpha: 0\.1 there, 0\.2 now"):
        erase(config(alpha=0.2, **taken))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_truncated_checkpoint_is_refused(
    config: Callable[..., EraseConfig], stopped: dict[str, Any], tmp_path: Path
) -> None:
    state = tmp_path / "out" / "checkpoint-2" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        erase(config(**stopped))


@pytest.mark.parametrize(
    ("asked", "launched", "expected"),
    [
        ("auto", None, "no"),
        ("auto", "no", "no"),
        ("auto", "bf16", "bf16"),
        ("no", "bf16", "no"),
        ("bf16", "no", "bf16"),
    ],
)
def test_precision_is_the_flag_or_the_launchers(
    asked: str, launched: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "native_precision", lambda: "no")
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert devices.make_accelerator(asked).mixed_precision == expected


def test_two_processes_with_half_the_batch_agree_with_one(config: Callable[..., EraseConfig], tmp_path: Path) -> None:
    settings = {"max_train_steps": 3, "data_batch_size": 2, "target": "frozen"}
    one = erase(config(output_dir=tmp_path / "one", train_batch_size=4, **settings))
    two = config(output_dir=tmp_path / "two", train_batch_size=2, data_cache_dir=tmp_path / "cache2", **settings)
    _launch(two, processes=2)
    assert json.loads((two.output_dir / "manifest.json").read_text())["num_processes"] == 2
    masks = [SaliencyMask.load(folder / MASK_FILE).tensors for folder in (one, two.output_dir)]
    assert sum(int((masks[0][name] ^ masks[1][name]).sum()) for name in masks[0]) <= 2
    weights = denoiser_weights(two.output_dir)
    for name, weight in denoiser_weights(one).items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=2e-4, msg=name)


def _launch(config: EraseConfig, processes: int) -> None:
    flags = [f"--{key}={value}" for key, value in config.as_dict().items()
             if value is not None and not isinstance(value, bool | list)]  # fmt: skip
    # What `accelerate launch --multi_gpu` runs, on CPUs; its own CPU launcher needs MPI for several processes.
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "erase.py"]
    flags += [f"--concept={concept}" for concept in config.concept]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, *command, *flags],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_data_is_made_once_and_shared(config: Callable[..., EraseConfig], tmp_path: Path) -> None:
    erase(config())
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    erase(config(output_dir=tmp_path / "again", num_concept_images=6))
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert made.items() <= after.items()
    assert len(after) == len(made) + 1


def test_folder_of_pictures_replaces_generated_ones(config: Callable[..., EraseConfig], tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for index in range(3):
        Image.new("RGB", (40, 30), (80 * index, 10, 10)).save(tmp_path / "pictures" / f"{index}.png")
    with pytest.raises(ValueError, match=r"3 pictures in .* have no captions.*--concept_data_prompt"):
        erase(config(concept_data_dir=tmp_path / "pictures"))
    prompt = load_concepts(["imagenette/church"])[0].forget[0]
    out = erase(config(concept_data_dir=tmp_path / "pictures", concept_data_prompt=prompt))
    assert (out / "data_concept.png").is_file()


def test_several_concepts_in_one_run(config: Callable[..., EraseConfig]) -> None:
    out = erase(config(concept=("imagenette/church", "imagenette/parachute")))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["concepts"] == ["church", "parachute"]
    assert not any("parachute" in anchor for anchor in manifest["anchors"]["church"])


def test_nan_stops_the_run_and_keeps_the_last_good_weights(config: Callable[..., EraseConfig], tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="The loss became"):
        erase(config(learning_rate=1e30, max_grad_norm=0.0, max_train_steps=20))
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    assert (checkpoint / "state.safetensors").is_file()
    assert not (tmp_path / "out" / "model_index.json").exists()


def test_mask_alone_then_used(config: Callable[..., EraseConfig], tmp_path: Path) -> None:
    path = build_only_mask(config(output_dir=tmp_path / "mask"))
    direct, given = erase(config()), erase(config(output_dir=tmp_path / "given", mask=str(path)))
    assert torch.equal(
        torch.cat([w.flatten() for w in denoiser_weights(direct).values()]),
        torch.cat([w.flatten() for w in denoiser_weights(given).values()]),
    )


def test_random_and_no_mask(config: Callable[..., EraseConfig], tmp_path: Path) -> None:
    random = SaliencyMask.load(erase(config(mask="random")) / MASK_FILE)
    salient = SaliencyMask.load(erase(config(output_dir=tmp_path / "salient")) / MASK_FILE)
    none = SaliencyMask.load(erase(config(output_dir=tmp_path / "none", mask="none")) / MASK_FILE)
    assert random.count == salient.count and none.density == 1.0
    assert (random & salient).density == pytest.approx(0.01, abs=0.005)


@pytest.mark.parametrize("precision", ["bf16"])
def test_mixed_precision_with_accumulation_and_checkpointing(
    precision: str, config: Callable[..., EraseConfig], tiny: TinyFolder
) -> None:
    changes = {"mixed_precision": precision, "gradient_accumulation_steps": 2, "gradient_checkpointing": True}
    out = erase(config(**changes, report_to="tensorboard"))
    moved = changed(denoiser_weights(tiny("sd1")), denoiser_weights(out))
    mask = SaliencyMask.load(out / MASK_FILE)
    assert any(m.any() for m in moved.values())
    assert_only_inside(mask, moved)
    assert list((out / "logs").rglob("events.*"))
