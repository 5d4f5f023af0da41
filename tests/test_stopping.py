"""Contract of a job that is stopped: one line says what is kept and what to type, the exit status is the signal's, a
training step is never cut in two, and the same run continues to the same weights from whatever stage it reached.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from erase import EraseConfig, erase
from erase.layout import MASK_FILE
from erase.run import Run
from erase.runtime.stopping import OutOfMemory, Stopped, deferred, explained, terminable
from erase.trained import trainer as trainer_module

TinyFolder = Callable[[str], Path]
ROOT = Path(__file__).parents[1]


@pytest.fixture
def flags(tiny: TinyFolder, tmp_path: Path) -> dict[str, object]:
    return {
        "concept": ("imagenette/church",), "density": 0.1, "num_concept_images": 4, "num_retain_images": 4,
        "data_num_inference_steps": 2, "data_batch_size": 2, "train_batch_size": 2, "max_train_steps": 4,
        "learning_rate": 1e-3, "mixed_precision": "no", "pretrained_model_name_or_path": str(tiny("sd1")),
        "output_dir": tmp_path / "out", "data_cache_dir": tmp_path / "cache",
    }  # fmt: skip


def weights(folder: Path) -> torch.Tensor:
    found = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    return torch.cat([found[name].flatten() for name in sorted(found)])


def test_an_explained_block_says_what_is_kept() -> None:
    with pytest.raises(Stopped, match=r"^Stopped\. Half of it\.$") as stop, explained(lambda: "Half of it."):
        raise KeyboardInterrupt
    assert stop.value.status == 130
    with pytest.raises(OutOfMemory, match="Give less. Half of it."), explained(lambda: "Half of it.", "Give less."):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    with pytest.raises(RuntimeError, match="something else"), explained(lambda: "no"):
        raise RuntimeError("something else")
    # Only the innermost block knows.
    with pytest.raises(Stopped, match="inner"), explained(lambda: "outer"), explained(lambda: "inner"):
        raise KeyboardInterrupt


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows sends no such signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_request_to_end_is_a_stop(number: signal.Signals, status: int) -> None:
    with pytest.raises(Stopped) as stop, terminable():
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert stop.value.status == status and signal.getsignal(number) == signal.SIG_DFL


def test_a_first_interrupt_waits_and_a_second_does_not() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped), deferred() as asked:
        assert asked() is None
        os.kill(os.getpid(), signal.SIGINT)
        assert isinstance(asked(), Stopped)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("stage", ["load", "data", "mask", "train", "export"])
def test_a_run_continues_from_whatever_stage_it_reached(
    stage: str, flags: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = erase(EraseConfig(**flags | {"output_dir": tmp_path / "whole"}))  # type: ignore[arg-type]
    doer = {"load": "prepare", "data": "mask", "mask": "change", "train": "train", "export": "export"}[stage]
    function = getattr(Run, doer)

    def stop(self: Run, *arguments: object) -> object:
        if stage == "export":
            function(self, *arguments)
        raise KeyboardInterrupt

    config = EraseConfig(**flags)  # type: ignore[arg-type]
    with monkeypatch.context() as patched, pytest.raises(Stopped, match="--resume_from_checkpoint latest"):
        patched.setattr(Run, doer, stop)
        erase(config)
    with pytest.raises(ValueError, match="this very run, which was stopped.*--resume_from_checkpoint latest"):
        erase(config)
    resumed = erase(config, resume_from_checkpoint="latest")
    assert torch.equal(weights(whole), weights(resumed))
    assert (whole / MASK_FILE).read_bytes() == (resumed / MASK_FILE).read_bytes()
    patches = [(folder / "erase-patch.safetensors").read_bytes() for folder in (whole, resumed)]
    assert patches[0] == patches[1]
    assert erase(config, resume_from_checkpoint="latest") == resumed  # nothing is left to do
    with pytest.raises(ValueError, match="it is finished"):
        erase(config)


def test_a_replacement_that_was_stopped_is_continued_and_the_old_model_stays_until_then(
    flags: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = EraseConfig(**flags)  # type: ignore[arg-type]
    new = EraseConfig(**flags | {"seed": 1, "overwrite_output_dir": True})  # type: ignore[arg-type]
    expected = weights(erase(EraseConfig(**flags | {"seed": 1, "output_dir": tmp_path / "direct"})))  # type: ignore[arg-type]
    before = weights(erase(old))

    def stop(self: Run, *arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(Stopped, match="the same command and --overwrite_output_dir"):
        patched.setattr(Run, "export", stop)
        erase(new)
    assert torch.equal(weights(old.output_dir), before)
    assert torch.equal(weights(erase(new)), expected)
    assert not (old.output_dir / ".erase" / "next").exists()


STEP = """
import sys, time
import torch
torch.set_num_threads(1)
from erase.trained import trainer
from erase.cli import main
step = trainer.Trainer._step
def slow(self):
    print("step", self.step, flush=True)
    time.sleep(0.3)
    return step(self)
trainer.Trainer._step = slow
main(sys.argv[1:])
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_training_leaves_a_checkpoint_and_one_line(
    number: signal.Signals, status: int, flags: dict[str, object]
) -> None:
    out = Path(str(flags["output_dir"]))
    given = flags | {"max_train_steps": 500}
    arguments = [f"--{name}={value}" for name, value in given.items() if name != "concept"]
    command = [sys.executable, "-c", STEP, "train", "--concept", "imagenette/church", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    while "step 2" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == status, said
    (checkpoint,) = out.glob("checkpoint-*")
    last = said.strip().splitlines()[-1]
    assert last.startswith("erase: Stopped. [train] Kept: training after step ") and "Traceback" not in said
    assert checkpoint.name.removeprefix("checkpoint-") in last and "--resume_from_checkpoint latest" in last


def test_a_lack_of_memory_keeps_the_run_and_names_what_to_lower(
    flags: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object) -> dict[str, float]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    with monkeypatch.context() as patched, pytest.raises(OutOfMemory, match="Lower --train_batch_size.*the mask"):
        patched.setattr(trainer_module.Trainer, "_step", full)
        erase(EraseConfig(**flags))  # type: ignore[arg-type]


def test_an_untracked_run_is_refused(flags: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"--report_to nosuch: .*available here: .*tensorboard.*pip install nosuch"):
        erase(EraseConfig(**flags | {"report_to": "nosuch"}))  # type: ignore[arg-type]
