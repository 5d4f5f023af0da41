"""Whether a run starts, continues or is refused: decided before anything is written."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .concepts.concept import Concept, load_concepts
from .config import EraseConfig
from .data.captions import data_hash
from .models.folder import check_model
from .output import Claim, Output, find
from .suggest import need_folder, need_mask

LATEST = "latest"
# What may differ between a run and its continuation without changing a single weight.
NOT_IDENTITY = ("output_dir", "overwrite_output_dir", "data_cache_dir", "resume_from_checkpoint", "report_to",
                "logging_dir", "checkpointing_steps", "checkpoints_total_limit", "save_patch", "proof",
                "num_target_images", "num_kept_images", "data_batch_size")  # fmt: skip
INPUTS = ("pretrained_model_name_or_path", "mask", "concept_data_dir", "retain_data_dir")


def identity(config: EraseConfig, concepts: Sequence[Concept], **surroundings: Any) -> dict[str, Any]:
    """Everything that decides a run's weights, as plain values; `surroundings`: precision, number of processes."""
    kept = {key: value for key, value in config.as_dict().items() if key not in NOT_IDENTITY}
    prompts = json.dumps([asdict(concept) for concept in concepts], sort_keys=True)
    digest = hashlib.sha256(prompts.encode()).hexdigest()
    return kept | {"prompts_sha256": digest, "data_sha256": data_hash(concepts, config)} | surroundings


def claim(command: str, config: EraseConfig, settings: Mapping[str, Any]) -> Claim:
    """The claim of a run on its output_dir."""
    inputs = {name: getattr(config, name) for name in INPUTS} | {"concept": None}
    for name in config.concept:
        inputs |= {"concept": name} if Path(name).is_file() else {}
    return Claim(
        folder=config.output_dir, command=command, settings=settings, inputs=inputs,
        overwrite=config.overwrite_output_dir,
    )  # fmt: skip


def accepted(command: str, config: EraseConfig, settings: Mapping[str, Any]) -> Output:
    """The output folder where the run may start or continue; ValueError that says how to go on otherwise.

    Its state is `new` for a run that starts, `begun` for one that continues, `finished` for one with nothing left.
    """
    output, resume = find(claim(command, config, settings)), config.resume_from_checkpoint
    folder = config.output_dir
    if output.state == "other":
        output.refuse_other()
    if output.state == "new" and resume == LATEST and not output.replaces:
        raise ValueError(f"{folder} holds no run to resume; start without --resume_from_checkpoint.")
    if output.state == "begun" and not resume and not output.replaces:
        reached = f" in the stage {output.stage!r}" if output.stage else ""
        raise ValueError(
            f"output_dir {folder} holds this very run, which was stopped{reached}. Continue it with "
            f"--resume_from_checkpoint {LATEST}, start it again with --overwrite_output_dir, or choose another folder."
        )
    if output.state == "finished" and not resume:
        raise ValueError(
            f"output_dir {folder} holds this very run, and it is finished. Choose another --output_dir, or make it "
            "again with --overwrite_output_dir."
        )
    return output


def check_inputs(config: EraseConfig) -> None:
    """ValueError for a concept, a mask or a data folder of `erase train` and `erase mask` that there is not."""
    check_model(config.pretrained_model_name_or_path)  # first: what can be erased depends on it
    load_concepts(config.concept, concept_type=config.concept_type, model=config.pretrained_model_name_or_path)
    need_mask(config.mask)
    need_folder("--concept_data_dir", config.concept_data_dir)
    need_folder("--retain_data_dir", config.retain_data_dir)
