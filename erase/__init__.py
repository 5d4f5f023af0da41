"""Concept erasure for text-to-image diffusion models, on diffusers.

>>> from erase import EraseConfig, erase
>>> erase(EraseConfig.load("canvas", concept="cat", output_dir="erased"))  # doctest: +SKIP

`import erase` is light: torch and diffusers are loaded when a name that needs them is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .classifiers.forget import classify
    from .concepts.concept import Concept, load_concepts
    from .config import EraseConfig
    from .export.patch import apply_patch, remove_patch
    from .models.loading import Denoiser, load_denoiser
    from .run import erase
    from .saliency.mask import SaliencyMask
    from .saliency.scores import saliency_scores

__version__ = "0.1.0"

_HOMES = {
    "classify": "classifiers.forget",
    "erase": "run",
    "EraseConfig": "config",
    "Concept": "concepts.concept",
    "load_concepts": "concepts.concept",
    "Denoiser": "models.loading",
    "load_denoiser": "models.loading",
    "SaliencyMask": "saliency.mask",
    "saliency_scores": "saliency.scores",
    "apply_patch": "export.patch",
    "remove_patch": "export.patch",
}
__all__ = ["Concept", "Denoiser", "EraseConfig", "SaliencyMask", "apply_patch", "classify", "erase", "load_concepts",
           "load_denoiser", "remove_patch", "saliency_scores"]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'erase' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
