"""What the machine offers: precision, cores, and an accelerator that uses them."""

import os
import sys
from importlib.util import find_spec
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState


def native_precision() -> str:
    """bf16 where the hardware multiplies it natively, else no."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if features.get("avx512_bf16") or features.get("amx_bf16") else "no"


def make_accelerator(mixed_precision: str = "auto", **arguments: Any) -> Accelerator:
    """An accelerator (`arguments` are accelerate's) with all cores shared evenly by the processes of this machine.

    auto: the fp16 or bf16 that `accelerate launch` or its config asked for, else `native_precision`. The launcher's
    "no" is no wish, because it is also what an unconfigured launcher says.
    """
    if not torch.cuda.is_available():
        # accelerate's launcher gives each CPU process one thread unless told otherwise.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("WORLD_SIZE", "1"))))
    if mixed_precision == "auto":
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION")
        mixed_precision = launched if launched in ("fp16", "bf16") else native_precision()
    # One process may make several runs (a notebook, a benchmark), each with its own precision.
    AcceleratorState._reset_state()
    return Accelerator(mixed_precision=mixed_precision, **arguments)


def peak_memory(device: torch.device) -> int | None:
    """Most bytes that this process has held so far: of the GPU's memory on a GPU, of the machine's on a CPU.

    None where the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if find_spec("resource") is None:  # Windows, which has a peak of its own
        return getattr(psutil.Process().memory_info(), "peak_wset", None)
    import resource

    # Linux counts in kilobytes, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
