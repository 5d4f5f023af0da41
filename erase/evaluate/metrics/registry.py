"""Every metric by name, and where it is built; no metric is imported before it is asked for, since they need torch."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config import EvaluateConfig
    from ..protocols import Protocol
    from ..scoring import Metric

METRICS: dict[str, tuple[str, str]] = {
    "canvas": ("canvas", "build"),
    "nudity": ("nudity", "build"),
    "fid": ("fidelity", "build_fid"),
    "fid_vs_base": ("fidelity", "build_fid_vs_base"),
    "fd_encoder": ("fidelity", "build_fd_encoder"),
    "fd_encoder_vs_base": ("fidelity", "build_fd_encoder_vs_base"),
    "kid": ("fidelity", "build_kid"),
    "cmmd": ("fidelity", "build_cmmd"),
    "clip_score": ("alignment", "build"),
    "lpips": ("fidelity", "build_lpips"),
    "accuracy": ("accuracy", "build"),
    "mace": ("accuracy", "build_mace"),
}
"""Name in `--metrics` and in protocols → module of this package and its function (config, protocol) → Metric."""


def build_metric(name: str, config: "EvaluateConfig", protocol: "Protocol") -> "Metric":
    """The metric that a protocol names, with the weights that the flags give it."""
    if name not in METRICS:
        raise ValueError(f"Unknown metric {name!r}; there are {', '.join(METRICS)}.")
    module, function = METRICS[name]
    return getattr(import_module(f".{module}", __package__), function)(config, protocol)
