"""One run from configuration to proof; every stage is a function of its own that can be called alone."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration, set_seed
from torch import Tensor

from . import __version__
from .closed_form.edit import edit, edit_settings, edited_weights
from .closed_form.saliency import edit_saliency
from .concepts.concept import Concept, load_concepts
from .config import CANVAS, EraseConfig, public_name
from .data.captions import check_data_dirs
from .data.training_data import TrainingData, build_training_data
from .export.patch import PATCH_FILE, make_patch, save_patch
from .export.pipeline import LIMITS, check_disk, export_pipeline, patch_metadata, round_to_variant, write_card
from .files import folder_hash, weights_hash, write_json, write_text
from .layout import CONFIG_FILE, LOSSES_FILE, MANIFEST_FILE, MASK_FILE, METRICS_FILE
from .ledger import note
from .methods import METHODS
from .models.loading import Denoiser, load_denoiser, resolve_model
from .models.tokens import check_prompts_fit
from .output import command_line, now
from .report import markdown_table, write_report
from .resume import LATEST, accepted, identity
from .runtime.devices import make_accelerator, peak_memory
from .runtime.stopping import explained
from .saliency.mask import SaliencyMask
from .saliency.masking import build_mask
from .saliency.scopes import SCOPES
from .trained.checkpoint import Checkpoint, find_checkpoint, list_checkpoints, remove_checkpoint
from .trained.forgetting import forgetting_scores
from .trained.trainer import Trainer

NOT_SCORED = "Not scored here (only runs on the canvas are, without --no_proof): see `erase evaluate`."
STAGES = {
    "load": "hashing and loading the base model",
    "data": "making the pictures to train on, or reading them from the cache",
    "mask": "finding the salient weights",
    "train": "changing them",
    "edit": "solving for the new weights",
    "export": "writing the pipeline",
    "proof": "scoring base and erased on held-out prompts",
}
"""What each stage does."""


def erase(config: EraseConfig | None = None, **overrides: Any) -> Path:
    """Erase concepts as `config` says and return output_dir, a diffusers pipeline folder with its proof beside it.

    `overrides` are fields of EraseConfig: `erase(concept="cat", pretrained_model_name_or_path="canvas")`.
    Raises ValueError before any long work when something that was asked for cannot be done.
    """
    if config is None:
        config = EraseConfig.load(None, **overrides)
    elif overrides:
        config = replace(config, **overrides)
    return Run(config).execute()


class Run:
    """The stages of one run and what they share: configuration, concepts, base model, accelerator, timings.

    `config` is the user's until the folder is open, and then says with output_dir where this run writes.
    """

    def __init__(self, config: EraseConfig, command: str = "train"):
        self.config, self.folder = config, config.output_dir
        self.concepts = load_concepts(
            config.concept, concept_type=config.concept_type, model=config.pretrained_model_name_or_path
        )
        self.proved = config.proof and config.pretrained_model_name_or_path == CANVAS
        check_data_dirs(self.concepts, config)
        if config.mask not in ("salient", "random", "none"):
            SaliencyMask.load(config.mask)
        check_tracker(config.report_to)
        self.accelerator = run_accelerator(config)
        self.identity = identity(
            config,
            self.concepts,
            precision=str(self.accelerator.mixed_precision),
            num_processes=self.accelerator.num_processes,
        )
        self.output = accepted(command, config, self.identity)
        self.checkpoint = self._checkpoint()
        self.base = resolve_model(
            config.pretrained_model_name_or_path, config.revision, config.variant, config.scope, config.method
        )
        check_disk(self.base, config.output_dir)
        self.seconds: dict[str, float] = {}
        self.at = "start"

    def _checkpoint(self) -> Checkpoint | None:
        """Where training continues: the checkpoint that was asked for, or the newest of a run that is continued."""
        asked, work = self.config.resume_from_checkpoint, self.output.work
        if asked and asked != LATEST:
            return find_checkpoint(asked, work)
        return next(iter(reversed(list_checkpoints(work))), None) if self.output.state == "begun" else None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, announce it, and note that it was reached."""
        self.say(f"[{name}] {STAGES[name]}")
        self.at = name
        if self.accelerator.is_main_process:
            self.output.reached(name)
        started = time.perf_counter()
        yield
        self.accelerator.wait_for_everyone()
        self.seconds[name] = round(time.perf_counter() - started, 2)

    def say(self, text: str) -> None:
        """Print on the main process only."""
        if self.accelerator.is_main_process:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The output folder, locked and with its config.yaml; whoever stops the run inside is told how to continue."""
        is_main, wait = self.accelerator.is_main_process, self.accelerator.wait_for_everyone
        with explained(self.kept, SMALLER), self.output.writing(is_main=is_main, wait=wait) as work:
            if is_main:
                write_text(work / CONFIG_FILE, yaml.safe_dump(self.config.as_dict(), sort_keys=False))
            self.config = replace(self.config, output_dir=work)
            if self.output.state == "begun":
                self.say(f"Continuing {self._place()}.")
            yield

    def _place(self) -> str:
        at = f"after step {self.checkpoint.step}" if self.checkpoint else f"in the stage {self.output.stage!r}"
        return f"the run in {self.folder} {at}"

    def kept(self) -> str:
        """What is left of a run that stops now, and how to continue it."""
        steps = [checkpoint.step for checkpoint in list_checkpoints(self.output.work)]
        parts = [f"training after step {steps[-1]}"] if steps else []
        parts += ["the mask"] if (self.output.work / MASK_FILE).is_file() else []
        parts += [f"pictures and encodings in {self.config.data_cache_dir}"]
        return f"[{self.at}] Kept: {', '.join(parts)}. Continue with the same command and " + (
            "--overwrite_output_dir." if self.output.replaces else f"--resume_from_checkpoint {LATEST}."
        )

    def execute(self) -> Path:
        """All stages in order; nothing is left to do for a run that is finished."""
        if self.output.state == "finished":
            self.say(f"The run in {self.folder} is finished; nothing is left to do.")
            return self.folder
        with self.opened():
            self.start_trackers()
            self.stages()
        self.accelerator.end_training()
        self.say(f"\nThe erased pipeline is in {self.folder}; load it with DiffusionPipeline.from_pretrained.")
        return self.folder

    def stages(self) -> None:
        """From the base model to the proof."""
        denoiser, data = self.prepare()
        before = {name: p.detach().clone() for name, p in denoiser.module.named_parameters()}
        with self.stage("mask"):
            mask = self.mask(denoiser, data)
        history = self.change(denoiser, data, mask)
        self.peak_bytes = peak_memory(self.accelerator.device)
        with self.stage("export"):
            if self.accelerator.is_main_process:
                self.export(denoiser, before)
        table = NOT_SCORED
        if self.proved:
            from .evaluate.proof import prove

            with self.stage("proof"):
                table = prove(self.concepts, self.config, self.accelerator, name=str(self.folder))
        if self.accelerator.is_main_process:
            self.finish(mask, history, table)

    def start_trackers(self) -> None:
        """Trackers write below the folder that the run writes to."""
        if not self.config.report_to:
            return
        self.accelerator.project_configuration = project(self.config)
        self.accelerator.init_trackers("erase", {k: str(v) for k, v in self.config.as_dict().items()})

    def prepare(self) -> tuple[Denoiser, TrainingData]:
        """Load the base and make or load the training data; what training does not need is released afterwards."""
        config = self.config
        with self.stage("load"):
            self.base_hash = folder_hash(self.base, config.variant)
            denoiser = load_denoiser(
                str(self.base),
                resolution=config.resolution,
                device=self.accelerator.device,
                variant=config.variant,
                scope=config.scope,
            )
            for line in check_prompts_fit(denoiser, self.concepts):
                self.say(line)
        with self.stage("data"):
            data = build_training_data(denoiser, self.concepts, config, self.base_hash, self.accelerator)
            if METHODS[config.method].kind == "trained":
                denoiser.release()
        return denoiser, data

    def mask(self, denoiser: Denoiser, data: TrainingData) -> SaliencyMask:
        """Build the mask (or take the one of the run that is continued), save it and plot where it lies."""
        path = self.config.output_dir / MASK_FILE
        if self.output.state == "begun" and path.exists():
            mask = SaliencyMask.load(path)
        else:
            scope = self.scope(denoiser)
            mask = build_mask(
                denoiser.module, self.config, self.mask_metadata(), scope, lambda: self.scores(denoiser, data, scope)
            )
        mask.check(denoiser.module, self.base_hash)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            mask.save(path)
            mask.plot(path.with_suffix(".png"))
        self.say(mask.table())
        return mask

    def mask_metadata(self) -> dict[str, str]:
        """What a mask of this run says of itself."""
        return {
            "base_sha256": self.base_hash,
            "model": public_name(self.config.pretrained_model_name_or_path),
            "concept": ", ".join(concept.name for concept in self.concepts),
            "score": self.config.mask_score,
            "seed": str(self.config.seed),
        }

    def scope(self, denoiser: Denoiser) -> Callable[[str], bool]:
        """Which parameters may change: those in --scope, and of a closed form only the ones that it edits."""
        if METHODS[self.config.method].kind == "closed-form":
            return edited_weights(denoiser.module).__contains__
        return SCOPES[self.config.scope]

    def scores(self, denoiser: Denoiser, data: TrainingData, scope: Callable[[str], bool]) -> dict[str, Tensor]:
        """Saliency of the weights in scope: of the edit, or of the forgetting loss."""
        config = self.config
        if METHODS[config.method].kind == "closed-form":
            return edit_saliency(denoiser, self.concepts, edit_settings(config), config.mask_score, config.density)
        within = {name for name, _ in denoiser.module.named_parameters() if scope(name)}
        return forgetting_scores(denoiser, data, config, self.accelerator, within)

    def change(self, denoiser: Denoiser, data: TrainingData, mask: SaliencyMask) -> list[dict[str, float]]:
        """Erase: train, or edit in closed form; returns the losses of every step, of which an edit has none."""
        config = self.config
        if METHODS[config.method].kind == "closed-form":
            with self.stage("edit"):
                edit(denoiser, self.concepts, edit_settings(config), None if config.mask == "none" else mask)
            return []
        with self.stage("train"):
            return self.train(denoiser, data, mask)

    def train(self, denoiser: Denoiser, data: TrainingData, mask: SaliencyMask) -> list[dict[str, float]]:
        """Train to the end, from the checkpoint that was asked for if any."""
        known = {
            "base": self.base_hash,
            "mask": weights_hash(mask.tensors.items(), torch.uint8),
            "data": data.sha256(),
            "settings": json.dumps(self.identity, sort_keys=True),
        }
        trainer = Trainer(denoiser, data, mask, self.config, self.accelerator, known)
        if self.checkpoint is not None:
            trainer.resume(self.checkpoint)
        return trainer.train()

    def export(self, denoiser: Denoiser, before: dict[str, Tensor]) -> None:
        """Write the pipeline folder and the patch; the patch refuses a model that equals its base."""
        config = self.config
        round_to_variant(denoiser.module, config.variant)
        erased = {name: p.detach().cpu() for name, p in denoiser.module.named_parameters()}
        base = {name: weight.cpu() for name, weight in before.items()}
        patch = make_patch(base, erased, denoiser.component, patch_metadata(config, self.concepts, self.base_hash))
        export_pipeline(denoiser, self.base, config.output_dir, config.variant)
        if config.save_patch:
            save_patch(patch, config.output_dir / PATCH_FILE)

    def finish(self, mask: SaliencyMask, history: list[dict[str, float]], table: str) -> None:
        """Manifest, losses and model card; the checkpoints have served and go."""
        config, work = self.config, self.config.output_dir
        write_json(work / LOSSES_FILE, history)
        index = json.loads((work / "model_index.json").read_text(encoding="utf-8"))
        manifest = self._manifest(mask, index["_class_name"])
        write_json(work / MANIFEST_FILE, manifest)
        results = markdown_table(_json(work / METRICS_FILE)) if self.proved else table
        write_card(config, self.concepts, work, name=self.folder.name, index=index, results=results, made=manifest)
        for checkpoint in list_checkpoints(work):
            remove_checkpoint(checkpoint)
        if config.report_to:
            for path in (work / config.logging_dir).rglob("*"):
                if path.is_file():
                    note(path, grows=True)
        if self.proved:
            write_report(work)
        self.say(f"\n{table}")
        if self.proved:
            self.say(f"\nThe report: {self.folder / 'report.html'}")

    def _manifest(self, mask: SaliencyMask, pipeline_class: str) -> dict[str, Any]:
        packages = ("torch", "diffusers", "transformers", "accelerate", "safetensors")
        return {
            "erase_version": __version__,
            "date": now(),
            "command": command_line(),
            "pipeline": pipeline_class,
            "method": self.config.method,
            "source": METHODS[self.config.method].source,
            "base": public_name(self.config.pretrained_model_name_or_path),
            "base_sha256": self.base_hash,
            "concepts": [concept.name for concept in self.concepts],
            "anchors": {concept.name: sorted(set(concept.anchor)) for concept in self.concepts},
            "salient_weights": mask.count,
            "density": mask.density,
            "num_processes": self.accelerator.num_processes,
            "mixed_precision": str(self.accelerator.mixed_precision),
            "device": str(self.accelerator.device),
            "packages": {name: version(name) for name in packages},
            "seconds": self.seconds,
            "resumed": self.output.state == "begun" or self.checkpoint is not None,
            "peak_bytes": self.peak_bytes,
            "limits": list(LIMITS),
        }


SMALLER = "Lower --train_batch_size or --data_batch_size, or turn --gradient_checkpointing on."


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def check_tracker(name: str | None) -> None:
    """ValueError for a tracker whose package is not installed: accelerate would leave it out without a word."""
    available = [str(tracker.value) for tracker in get_available_trackers()]
    if name and name != "all" and name not in available:
        raise ValueError(
            f"--report_to {name}: that tracker is unknown or not installed; available here: "
            f"{', '.join(available) or 'none'}. pip install {name}"
        )


def project(config: EraseConfig) -> ProjectConfiguration:
    """Where trackers write: below the folder that `config` names."""
    return ProjectConfiguration(str(config.output_dir), str(config.output_dir / config.logging_dir))


def run_accelerator(config: EraseConfig) -> Accelerator:
    """The accelerator that `config` asks for."""
    accelerator = make_accelerator(
        config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=config.report_to,
        project_config=project(config),
    )
    if config.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    set_seed(config.seed)
    return accelerator


def build_only_mask(config: EraseConfig) -> Path:
    """`erase mask`: data and mask, without training; returns the mask's file."""
    run = Run(config, "mask")
    if run.output.state != "finished":
        with run.opened():
            denoiser, data = run.prepare()
            with run.stage("mask"):
                run.mask(denoiser, data)
    return run.folder / MASK_FILE


__all__ = ["Concept", "Run", "build_only_mask", "erase"]
