"""`erase evaluate`: its flags, and the models and metrics that they name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from ..config import CANVAS
from ..data.tables import READERS
from ..draw.guard_names import GuardName, check_guard
from ..models.folder import check_model, run_settings
from ..output import Claim
from ..suggest import need_either, need_file, need_folder, need_name

if TYPE_CHECKING:
    from ..concepts.concept import Concept
    from ..draw.pipelines import ModelSource
    from .protocols import Protocol
    from .scoring import Metric


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Draw a protocol's pictures with the base and the erased model, score both, compare, and write the report.

    Example: erase evaluate --protocol i2p/sexual --model erased --base CompVis/stable-diffusion-v1-4

    Try it:  erase evaluate --protocol canvas --model outputs/demo
    """

    protocol: str
    """canvas, i2p, i2p/sexual, i2p/nude50, coco-30k, coco-10k, imagenette, unlearncanvas, or a YAML file of yours."""
    model: str | None = None
    """The erased model: a folder that `erase train` wrote, any diffusers folder, or a hub id."""
    base: str | None = None
    """The model that it was made from; a folder that `erase train` wrote says so itself."""
    patch: Path | None = None
    """erase-patch.safetensors: the erased model is --base with this patch on top."""
    unet_weights: Path | None = None
    """Some of the denoiser's weights in .safetensors: the erased model is --base with these on top."""
    guard: GuardName | None = None
    """Draw the erased model's pictures under a guard (no weight changed); with --base alone, the base's own."""
    guard_concept: str | None = None
    """What the guard steers away from, in words, several phrases with commas. By default what was erased: of a class
    its phrase in prompts (canvas/cat: "a cat"), of other concepts the name (nudity)."""
    images: Path | None = None
    """The erased model's pictures, if they exist: a folder of `erase generate`, or any folder of pictures."""
    base_images: Path | None = None
    """The base model's pictures, if they exist."""
    revision: str | None = None
    """Hub revision of the base; a folder that `erase train` wrote knows that of its own."""
    variant: str | None = None
    """Weight variant of the models' files, such as fp16; a folder that `erase train` wrote knows its own and its
    base's."""
    output_dir: Path = Path("evaluation")
    """Where pictures, records, scores, metrics.json and report.html are written; an interrupted run goes on there."""

    overwrite_output_dir: bool = False
    """Replace the evaluation that --output_dir holds once the new one is whole. Files of your own stay."""

    concept: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What was erased, for protocols that ask for it by name; a folder that `erase train` wrote says so itself."""
    prompts: str | None = None
    """A local copy of the protocol's table of prompts."""
    max_images: int | None = None
    """Only the first so many pictures of each role: a quick look, not the protocol's number."""
    num_inference_steps: int | None = None
    """Denoising steps other than the protocol's."""
    metrics: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Metrics instead of the protocol's: canvas, nudity, fid, fid_vs_base, kid, cmmd, clip_score, lpips, accuracy,
    mace, fd_encoder, fd_encoder_vs_base."""

    channel_order: Literal["rgb", "bgr"] = "rgb"
    """How NudeNet sees pictures; bgr is what the package itself does with files."""
    inception_weights: Path | None = None
    """Local weights of FID's network: weights-inception-2015-12-05-6726825d.pth, or its tensors as .safetensors."""
    fid_reference: Path | None = None
    """Real pictures for FID, KID and CMMD: a folder, or for FID its statistics in .npz."""
    clip_model: str | None = None
    """CLIP of the CLIP score: hub id or folder."""
    cmmd_model: str | None = None
    """CLIP of CMMD: hub id or folder."""
    encoder: str | None = None
    """Vision model of the metrics fd_encoder and fd_encoder_vs_base: hub id or folder."""
    lpips_weights: Path | None = None
    """Weights of LPIPS (AlexNet) in .safetensors."""
    classifier: str | None = None
    """Image classifier that names objects: a transformers model by hub id or folder."""
    object_classifier: str | None = None
    """The same, beside a --style_classifier."""
    style_classifier: str | None = None
    """Image classifier that names styles."""

    batch_size: int = 8
    """Pictures drawn at once on each process."""
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """Compute precision; auto is the fp16 or bf16 that `accelerate launch` was told, else bf16 where the hardware
    multiplies it natively, else no. Weights stay float32."""
    data_cache_dir: Path = Path("~/.cache/diffusers-erase")
    """Where pictures of a model and features of real pictures are kept and shared between evaluations."""
    report: bool = True
    """Write report.html and report.json."""

    def __post_init__(self) -> None:
        for name in ("output_dir", "patch", "unet_weights", "images", "base_images", "inception_weights",
                     "fid_reference", "lpips_weights", "data_cache_dir"):  # fmt: skip
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value).expanduser())
        for name in ("batch_size", "max_images", "num_inference_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if not (self.model or self.patch or self.unet_weights or self.guard or self.images):
            raise ValueError(
                "Nothing to evaluate: give --model, --patch, --unet_weights or --guard (with --base), or --images."
            )
        if (self.patch or self.unet_weights) and self.model:
            raise ValueError("--patch and --unet_weights go on top of --base; leave out --model.")
        if (self.patch or self.unet_weights) and not self.base:
            raise ValueError("Say with --base which model --patch or --unet_weights was made from.")
        self._check_guard()

    def _check_guard(self) -> None:
        if self.guard_concept is not None:
            check_guard(self.guard, self.guard_concept)
        if self.guard and self.images:
            raise ValueError("--guard acts while pictures are drawn, and --images are drawn already; leave one out.")
        if self.guard and not (self.model or self.base):
            raise ValueError("Say with --base (or --model) which model is drawn under --guard.")

    @property
    def run(self) -> Mapping[str, Any]:
        """Settings of the `erase train` run in the folder `model`; empty for other models."""
        return run_settings(self.model) if self.model else {}

    def claim(self) -> Claim:
        """What the command writes and reads. Which pictures and scores fit, their own folders know."""
        names = ("model", "base", "patch", "unet_weights", "images", "base_images", "prompts", "inception_weights",
                 "fid_reference", "clip_model", "cmmd_model", "encoder", "lpips_weights", "classifier",
                 "object_classifier", "style_classifier", "data_cache_dir")  # fmt: skip
        inputs = {name: getattr(self, name) for name in names}
        return Claim(folder=self.output_dir, command="evaluate", inputs=inputs, overwrite=self.overwrite_output_dir)

    def sources(self) -> "dict[str, ModelSource | None]":
        """Base (if known) and erased; None for pictures that exist.

        A run's folder holds its model in the run's own variant, and its base is of the run's revision and variant where
        --revision and --variant do not say otherwise; every other model is of --variant.
        """
        from ..draw.pipelines import ModelSource

        run = self.run
        base = self.base or run.get("pretrained_model_name_or_path")
        known = run if base == run.get("pretrained_model_name_or_path") else {}
        sources: dict[str, ModelSource | None] = {}
        if self.base_images or (base and not self.images):
            sources["base"] = None if self.base_images else ModelSource(
                pretrained_model_name_or_path=str(base),
                revision=self.revision or known.get("revision"),
                variant=self.variant or known.get("variant"),
            )  # fmt: skip
        sources["erased"] = None if self.images else ModelSource(
            pretrained_model_name_or_path=str(self.model or base),
            revision=None if self.model else self.revision,
            variant=None if run else self.variant,
            patch=self.patch,
            unet_weights=self.unet_weights,
            guard=self.guard,
            guard_concept=self.guard_words() if self.guard else None,
        )  # fmt: skip
        return sources

    def guard_words(self) -> str:
        """The guard's concept in words: --guard_concept, or what was erased."""
        if self.guard_concept is None and not (concepts := self.concepts()):
            raise ValueError(f'--guard {self.guard} needs --concept, or the concept in words: --guard_concept "a cat".')
        return self.guard_concept or ", ".join(concept_words(concept) for concept in concepts)

    def concepts(self) -> "tuple[Concept, ...]":
        """What was erased, from the flags or from the run itself; empty when neither says."""
        from ..concepts.concept import load_concepts

        names = self.concept or tuple(self.run.get("concept", ()))
        model = CANVAS if self.protocol == CANVAS else self.run.get("pretrained_model_name_or_path")
        kind = None if self.concept else self.run.get("concept_type")
        return load_concepts(names, concept_type=kind, model=model) if names else ()


def concept_words(concept: "Concept") -> str:
    """A concept as prompts call it: a class's phrase in its shipped family, else its name without hyphens."""
    from ..concepts.concept import PROMPTS_DIR, load_family

    phrases: Mapping[str, str] = {}
    if concept.family and (PROMPTS_DIR / f"{concept.family}.yaml").is_file():
        phrases = load_family(concept.family).domains.get(concept.type, {})
    return phrases.get(concept.name, concept.name.replace("-", " "))


def check_inputs(config: EvaluateConfig) -> None:
    """ValueError for a protocol, metric, concept, file or folder of `erase evaluate` that there is not."""
    from .protocols import load_protocol

    protocol, _ = load_protocol(config.protocol)
    for name in config.metrics or protocol.metrics:
        need_name("metric", name, BUILDERS)
    config.concepts()
    for model in filter(None, (config.base, config.model)):
        check_model(model, on_top=True)
    for flag in ("patch", "unet_weights", "inception_weights", "lpips_weights"):
        need_file(f"--{flag}", getattr(config, flag))
    for flag in ("images", "base_images"):
        need_folder(f"--{flag}", getattr(config, flag))
    need_either("--fid_reference", config.fid_reference)
    if config.prompts and Path(config.prompts).suffix.lower() in READERS:
        need_file("--prompts", Path(config.prompts).expanduser())


def build_metric(name: str, config: EvaluateConfig, protocol: "Protocol") -> "Metric":
    """The metric that a protocol names, with the weights that the flags give it."""
    if name not in BUILDERS:
        raise ValueError(f"Unknown metric {name!r}; there are {', '.join(BUILDERS)}.")
    return BUILDERS[name](config, protocol)


def _canvas(config: EvaluateConfig, protocol: "Protocol") -> "Metric":
    from .metrics.canvas import CanvasMetric

    return CanvasMetric()


def _nudity(config: EvaluateConfig, protocol: "Protocol") -> "Metric":
    from .metrics.nudity import NudityMetric, NudityScorer

    return NudityMetric(NudityScorer(channel_order=config.channel_order))


def _reference(config: EvaluateConfig) -> Any:
    from .metrics.fidelity import Reference

    return Reference(config.fid_reference, config.data_cache_dir) if config.fid_reference else None


def _needed_reference(config: EvaluateConfig, name: str) -> Any:
    if (reference := _reference(config)) is None:
        raise ValueError(
            f"{name} compares with real pictures: give --fid_reference, a folder of them (for COCO those of val2014) "
            f"or their statistics in .npz. The distance to the base model's pictures is --metrics {name}_vs_base."
        )
    return reference


@cache
def _inception(weights: Path | None) -> Any:
    """One network for all metrics that use it."""
    from .metrics.encoders import InceptionScorer

    return InceptionScorer(weights)


def _fid(config: EvaluateConfig, protocol: "Protocol") -> "Metric":
    from .metrics.fidelity import FrechetMetric

    return FrechetMetric(_inception(config.inception_weights), _needed_reference(config, "fid"))


def _fid_vs_base(config: EvaluateConfig, protocol: "Protocol") -> "Metric":
    from .metrics.fidelity import FrechetVsBaseMetric

    return FrechetVsBaseMetric(_inception(config.inception_weights))


def _kid(config: EvaluateConfig, protocol: "Protocol") -> "Metric":
    from .metrics.fidelity import KidMetric

    reference = _reference(config)
    # Statistics hold no single pictures, which KID compares: the distance to the base's remains.
    return KidMetric(_inception(config.inception_weights), reference if reference and reference.path.is_dir() else None)


def _encoder(config: EvaluateConfig) -> Any:
    from .metrics.encoders import EncoderScorer

    if not config.encoder:
        raise ValueError("fd_encoder needs --encoder, a transformers vision model by hub id or folder.")
    return EncoderScorer(config.encoder)


def _fd_encoder(config: EvaluateConfig, protocol: "Protocol") -> "Metric":
    from .metrics.fidelity import EncoderFrechetMetric

    return EncoderFrechetMetric(_encoder(config), _needed_reference(config, "fd_encoder"))


def _fd_encoder_vs_base(config: EvaluateConfig, protocol: "Protocol") -> "Metric":
    from .metrics.fidelity import EncoderFrechetVsBaseMetric

    return EncoderFrechetVsBaseMetric(_encoder(config))


def _cmmd(config: EvaluateConfig, protocol: "Protocol") -> "Metric":
    from .metrics.encoders import ClipImageScorer
    from .metrics.fidelity import CmmdMetric

    scorer = ClipImageScorer(config.cmmd_model) if config.cmmd_model else ClipImageScorer()
    return CmmdMetric(scorer, _reference(config))


def _clip(config: EvaluateConfig) -> Any:
    from .metrics.alignment import CLIPScorer

    return CLIPScorer(config.clip_model) if config.clip_model else CLIPScorer()


def _clip_score(config: EvaluateConfig, protocol: "Protocol") -> "Metric":
    from .metrics.alignment import ClipScoreMetric

    return ClipScoreMetric(_clip(config))


def _lpips(config: EvaluateConfig, protocol: "Protocol") -> "Metric":
    from .metrics.fidelity import LpipsMetric

    return LpipsMetric(config.lpips_weights)


def _classifiers(config: EvaluateConfig, protocol: "Protocol") -> dict[str, Any]:
    from .metrics.accuracy import ClassifierScorer, ObjectClassifierScorer, StyleClassifierScorer

    found: dict[str, Any] = {}
    if config.classifier:
        found["object" if protocol.family else "label"] = ClassifierScorer(config.classifier)
    if config.object_classifier:
        found["object"] = ObjectClassifierScorer(config.object_classifier)
    if config.style_classifier:
        found["style"] = StyleClassifierScorer(config.style_classifier)
    return found


def _accuracy(config: EvaluateConfig, protocol: "Protocol") -> "Metric":
    from .metrics.accuracy import AccuracyMetric

    if not (classifiers := _classifiers(config, protocol)):
        raise ValueError(
            f"{protocol.name} needs a classifier: --classifier, or --object_classifier and --style_classifier, a "
            "transformers image classifier by hub id or folder (such as microsoft/resnet-50 for ImageNet's classes)."
        )
    return AccuracyMetric(classifiers)


def _mace(config: EvaluateConfig, protocol: "Protocol") -> "Metric":
    from .metrics.accuracy import MaceMetric

    return MaceMetric(_classifiers(config, protocol), _clip(config) if config.clip_model else None)


BUILDERS: "dict[str, Callable[[EvaluateConfig, Protocol], Metric]]" = {
    "canvas": _canvas,
    "nudity": _nudity,
    "fid": _fid,
    "fid_vs_base": _fid_vs_base,
    "fd_encoder": _fd_encoder,
    "fd_encoder_vs_base": _fd_encoder_vs_base,
    "kid": _kid,
    "cmmd": _cmmd,
    "clip_score": _clip_score,
    "lpips": _lpips,
    "accuracy": _accuracy,
    "mace": _mace,
}
