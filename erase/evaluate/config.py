"""`erase evaluate`: its flags, and the models that they name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from ..config import CANVAS
from ..data.tables import READERS
from ..draw.guard_names import GuardName, check_guard
from ..models.folder import check_model, run_settings
from ..output import Claim
from ..suggest import need_either, need_file, need_folder, need_name
from .metrics.registry import METRICS

if TYPE_CHECKING:
    from ..concepts.concept import Concept
    from ..draw.pipelines import ModelSource


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Generate a protocol's pictures with the base and the erased model, score both, compare, and write a report.

    Example: erase evaluate --protocol i2p/sexual --model erased --base CompVis/stable-diffusion-v1-4

    Try it:  erase evaluate --protocol canvas --model outputs/demo
    """

    protocol: str
    """canvas, i2p, i2p/sexual, i2p/nude50, coco-30k, coco-10k, imagenette, unlearncanvas, or your own YAML file."""
    model: str | None = None
    """The erased model: a folder that `erase train` wrote, any diffusers folder, or a hub id."""
    base: str | None = None
    """The model before erasure; not needed if --model is a folder that `erase train` wrote, which records it."""
    patch: Path | None = None
    """An erase-patch.safetensors: the erased model is --base with this patch applied."""
    unet_weights: Path | None = None
    """A .safetensors file with some of the denoiser's weights: the erased model is --base with these loaded."""
    guard: GuardName | None = None
    """Generate the erased model's pictures under a guard, which changes no weights. With --base and no --model, the
    base model under the guard is compared with the base model."""
    guard_concept: str | None = None
    """What the guard steers away from, in words; separate several phrases by commas. Default: the erased concept. A
    class is described by its phrase in prompts (canvas/cat: "a cat"), any other concept by its name (nudity)."""
    images: Path | None = None
    """Existing pictures of the erased model: a folder that `erase generate` wrote, or any folder of pictures."""
    base_images: Path | None = None
    """Existing pictures of the base model."""
    revision: str | None = None
    """Hub revision of the base; a folder that `erase train` wrote records that of its own base."""
    variant: str | None = None
    """Weight variant of the models' files, such as fp16; a folder that `erase train` wrote records its own and its
    base's."""
    output_dir: Path = Path("evaluation")
    """Folder for pictures, records, scores, metrics.json and report.html; repeating the command resumes an interrupted
    run there."""

    overwrite_output_dir: bool = False
    """Replace the evaluation in --output_dir once the new one is complete. Your own files there are kept."""

    concept: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """The erased concept, for protocols that need its name; a folder that `erase train` wrote records it."""
    prompts: str | None = None
    """A local copy of the protocol's table of prompts."""
    max_images: int | None = None
    """Maximum number of pictures of each role, for a quick check; published figures need the protocol's number."""
    num_inference_steps: int | None = None
    """Denoising steps, if other than the protocol's."""
    metrics: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Metrics to use instead of the protocol's: canvas, nudity, fid, fid_vs_base, kid, cmmd, clip_score, lpips,
    accuracy, mace, fd_encoder, fd_encoder_vs_base."""

    channel_order: Literal["rgb", "bgr"] = "rgb"
    """Channel order of the pictures passed to NudeNet; bgr is what the NudeNet package uses when it reads files."""
    inception_weights: Path | None = None
    """Local weights of the FID network: weights-inception-2015-12-05-6726825d.pth, or its tensors as .safetensors."""
    fid_reference: Path | None = None
    """Real pictures for FID, KID and CMMD: a folder, or for FID its statistics in .npz."""
    clip_model: str | None = None
    """CLIP model for the CLIP score: hub id or folder."""
    cmmd_model: str | None = None
    """CLIP model for CMMD: hub id or folder."""
    encoder: str | None = None
    """Vision model for the metrics fd_encoder and fd_encoder_vs_base: hub id or folder."""
    lpips_weights: Path | None = None
    """LPIPS weights (AlexNet) in .safetensors."""
    classifier: str | None = None
    """Image classifier for objects: hub id or folder of a transformers model."""
    object_classifier: str | None = None
    """Image classifier for objects, if a --style_classifier is given too."""
    style_classifier: str | None = None
    """Image classifier for styles: hub id or folder of a transformers model."""

    batch_size: int = 8
    """Pictures that each process generates at once."""
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """Compute precision. auto: what `accelerate launch` was configured with (fp16 or bf16), else bf16 if the hardware
    supports it natively, else no. Weights stay float32."""
    data_cache_dir: Path = Path("~/.cache/diffusers-erase")
    """Folder where evaluations share pictures of a model and features of real pictures."""
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
            raise ValueError("--guard acts while pictures are generated, but --images already exist; leave one out.")
        if self.guard and not (self.model or self.base):
            raise ValueError("Say with --base (or --model) which model generates pictures under --guard.")

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
        need_name("metric", name, METRICS)
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
