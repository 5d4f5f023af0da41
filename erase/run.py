"""One run from configuration to proof; every stage is a function of its own that can be called alone."""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from torch import Tensor

from . import __version__
from .checkpoint import find_checkpoint, list_checkpoints
from .closed_form import edit
from .concepts import Concept, load_concepts
from .config import CANVAS, EraseConfig
from .data import TrainingData, build_training_data, list_pictures
from .devices import make_accelerator, peak_memory
from .export import check_disk, export_pipeline, round_to_variant, write_card
from .files import folder_hash, weights_hash, write_json, write_text
from .forgetting import build_mask, edit_settings
from .methods import METHODS
from .models import Denoiser, load_denoiser, resolve_model
from .patch import PATCH_FILE, make_patch, save_patch
from .report import markdown_table, write_report
from .saliency import SaliencyMask
from .trainer import Trainer

MASK_FILE = "mask.safetensors"
CONFIG_FILE = "config.yaml"
MANIFEST_FILE = "manifest.json"
NOT_SCORED = "Not scored here (only runs on the canvas are, without --no_proof): see `erase evaluate`."
# What may differ between a run and its continuation without changing a single weight.
NOT_IDENTITY = ("output_dir", "overwrite_output_dir", "data_cache_dir", "resume_from_checkpoint", "report_to",
                "logging_dir", "checkpointing_steps", "checkpoints_total_limit", "save_patch", "proof",
                "num_target_images", "num_kept_images", "data_batch_size")  # fmt: skip


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
    """The stages of one run and what they share: configuration, concepts, base model, accelerator, timings."""

    def __init__(self, config: EraseConfig):
        self.config = config
        self.concepts = load_concepts(
            config.concept, concept_type=config.concept_type, model=config.pretrained_model_name_or_path
        )
        self.proved = config.proof and config.pretrained_model_name_or_path == CANVAS
        for folder in (config.concept_data_dir, config.retain_data_dir):
            if folder is not None:
                list_pictures(folder)
        if config.mask not in ("salient", "random", "none"):
            SaliencyMask.load(config.mask)
        self.checkpoint = (
            find_checkpoint(config.resume_from_checkpoint, config.output_dir) if config.resume_from_checkpoint else None
        )
        check_output_dir(config)
        self.base = resolve_model(
            config.pretrained_model_name_or_path, config.revision, config.variant, config.scope, config.method
        )
        check_disk(self.base, config.output_dir)
        self.accelerator = run_accelerator(config)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and announce it."""
        self.say(f"[{name}]")
        started = time.perf_counter()
        yield
        self.accelerator.wait_for_everyone()
        self.seconds[name] = round(time.perf_counter() - started, 2)

    def say(self, text: str) -> None:
        """Print on the main process only."""
        if self.accelerator.is_main_process:
            print(text, file=sys.stderr, flush=True)

    def execute(self) -> Path:
        """All stages in order."""
        config = self.config
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
                table = prove(self.concepts, config, self.accelerator)
        if self.accelerator.is_main_process:
            self.finish(mask, history, table)
        self.accelerator.end_training()
        return config.output_dir

    def prepare(self) -> tuple[Denoiser, TrainingData]:
        """Load the base and make or load the training data; what training does not need is released afterwards."""
        config = self.config
        with self.stage("load"):
            self._open_output_dir()
            self.base_hash = folder_hash(self.base)
            denoiser = load_denoiser(
                str(self.base),
                resolution=config.resolution,
                device=self.accelerator.device,
                variant=config.variant,
                scope=config.scope,
            )
        with self.stage("data"):
            data = build_training_data(denoiser, self.concepts, config, self.base_hash, self.accelerator)
            if METHODS[config.method].kind == "trained":
                denoiser.release()
        return denoiser, data

    def _open_output_dir(self) -> None:
        if self.accelerator.is_main_process:
            if self.config.overwrite_output_dir and self.checkpoint is None:
                shutil.rmtree(self.config.output_dir, ignore_errors=True)
            self.config.output_dir.mkdir(parents=True, exist_ok=True)
            write_text(self.config.output_dir / CONFIG_FILE, yaml.safe_dump(self.config.as_dict(), sort_keys=False))
        self.accelerator.wait_for_everyone()

    def mask(self, denoiser: Denoiser, data: TrainingData) -> SaliencyMask:
        """Build the mask (or take the one of the run being resumed), save it and plot where it lies."""
        path = self.config.output_dir / MASK_FILE
        if self.checkpoint is not None and path.exists():
            mask = SaliencyMask.load(path)
        else:
            mask = build_mask(denoiser, data, self.concepts, self.config, self.base_hash, self.accelerator)
        mask.check(denoiser.module, self.base_hash)
        if self.accelerator.is_main_process:
            mask.save(path)
            mask.plot(path.with_suffix(".png"))
        self.say(mask.table())
        return mask

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
        identity = {
            "base": self.base_hash,
            "mask": weights_hash(mask.tensors.items(), torch.uint8),
            "settings": settings_hash(self.config),
        }
        trainer = Trainer(denoiser, data, mask, self.config, self.accelerator, identity)
        if self.checkpoint is not None:
            trainer.resume(self.checkpoint)
        return trainer.train()

    def export(self, denoiser: Denoiser, before: dict[str, Tensor]) -> None:
        """Write the pipeline folder and the patch; the patch refuses a model that equals its base."""
        config = self.config
        round_to_variant(denoiser.module, config.variant)
        erased = {name: p.detach().cpu() for name, p in denoiser.module.named_parameters()}
        base = {name: weight.cpu() for name, weight in before.items()}
        metadata = {"model": config.pretrained_model_name_or_path, "concept": ", ".join(config.concept)}
        patch = make_patch(base, erased, denoiser.component, metadata)
        export_pipeline(denoiser, self.base, config.output_dir, config.variant)
        if config.save_patch:
            save_patch(patch, config.output_dir / PATCH_FILE)

    def finish(self, mask: SaliencyMask, history: list[dict[str, float]], table: str) -> None:
        """Manifest, losses and model card; the checkpoints have served and go."""
        config, folder = self.config, self.config.output_dir
        write_json(folder / "losses.json", history)
        index = json.loads((folder / "model_index.json").read_text())
        write_json(folder / MANIFEST_FILE, self._manifest(mask, index["_class_name"]))
        write_card(config, folder, index["_class_name"], self._results() if self.proved else table)
        for checkpoint in list_checkpoints(folder):
            shutil.rmtree(checkpoint.folder)
        if self.proved:
            self.say(f"The report: {write_report(folder)}")
        self.say(f"\n{table}\n\nThe erased pipeline is in {folder}; load it with DiffusionPipeline.from_pretrained.")

    def _results(self) -> str:
        """The model card's table."""
        return markdown_table(json.loads((self.config.output_dir / "metrics.json").read_text()))

    def _manifest(self, mask: SaliencyMask, pipeline_class: str) -> dict[str, Any]:
        packages = ("torch", "diffusers", "transformers", "accelerate", "safetensors")
        return {
            "erase_version": __version__,
            "pipeline": pipeline_class,
            "method": self.config.method,
            "base": self.config.pretrained_model_name_or_path,
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
            "peak_bytes": self.peak_bytes,
            "command": " ".join(sys.argv),
        }


def settings_hash(config: EraseConfig) -> str:
    """Hash of the settings that decide the weights."""
    import hashlib

    kept = {key: value for key, value in config.as_dict().items() if key not in NOT_IDENTITY}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def check_output_dir(config: EraseConfig) -> None:
    """Refuse a folder that holds something else, or another run that was not asked to be resumed or replaced."""
    folder = config.output_dir
    if folder.is_file():
        raise ValueError(f"output_dir {folder} is a file; give a folder.")
    if not folder.is_dir() or not any(folder.iterdir()) or config.resume_from_checkpoint:
        return
    is_run = (folder / CONFIG_FILE).is_file()
    if config.overwrite_output_dir and is_run:
        return
    if not is_run:
        raise ValueError(f"output_dir {folder} holds files that no run of ours wrote; choose another --output_dir.")
    raise ValueError(
        f"output_dir {folder} holds another run. Choose another --output_dir, replace it with --overwrite_output_dir, "
        "or go on with it: --resume_from_checkpoint latest."
    )


def run_accelerator(config: EraseConfig) -> Accelerator:
    """The accelerator that `config` asks for, with its trackers."""
    project = ProjectConfiguration(str(config.output_dir), str(config.output_dir / config.logging_dir))
    accelerator = make_accelerator(
        config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=config.report_to,
        project_config=project,
    )
    if config.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    set_seed(config.seed)
    if config.report_to:
        accelerator.init_trackers("erase", {k: str(v) for k, v in config.as_dict().items()})
    return accelerator


def build_only_mask(config: EraseConfig) -> Path:
    """`erase mask`: data and mask, without training; returns the mask's file."""
    run = Run(config)
    denoiser, data = run.prepare()
    with run.stage("mask"):
        run.mask(denoiser, data)
    return config.output_dir / MASK_FILE


__all__ = ["Concept", "Run", "build_only_mask", "erase"]
