"""The runs that a comparison is made of: which commands, in which folders, and what of them is done already.

output_dir/runs/LABEL/
  seed-0/         output_dir of `erase train`, its evaluation/ inside; the base's and the guards' is run/
  seed-0.json     what the run is and how it was asked for
  seed-0.log      what it printed
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from ..concepts.concept import load_concepts
from ..config import CANVAS, CONFIGS_DIR, EraseConfig, layered
from ..evaluate import config as evaluate_config
from ..evaluate.config import EvaluateConfig
from ..files import write_json, write_text
from ..layout import CONFIG_FILE, EVALUATION_DIR, EVALUATION_FILE, MANIFEST_FILE
from ..output import changes, discard, is_ours
from ..parsing import parse
from ..resume import LATEST, check_inputs
from .config import BASE, CompareConfig, Entry, slug

RUNS_DIR = "runs"
PROTOCOL_FILE = "protocol.yaml"
PROOF_BATCH_SIZE = 60
"""The proof's own: the base's and the guards' pictures are drawn in batches of the same size."""
# What may differ between a run and its repetition without changing what is compared.
NOT_COMPARED = ("output_dir", "overwrite_output_dir", "data_cache_dir", "resume_from_checkpoint", "report_to",
                "logging_dir", "checkpointing_steps", "checkpoints_total_limit", "save_patch")  # fmt: skip

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of a job."""

    arguments: tuple[str, ...]
    """Of `erase`: the command and its flags."""
    settings: Settings
    """What its result must have been made with to count as done."""
    made: Path
    """The file that it writes last."""

    @property
    def name(self) -> str:
        """train or evaluate."""
        return self.arguments[0]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: its commands one after the other."""

    label: str
    """Line of the table."""
    kind: str
    """base, trained, closed-form or inference."""
    concept: str
    """What is erased."""
    seed: int | None
    """Seed of the run; None where nothing is trained or edited."""
    folder: Path
    """Where the run is written."""
    steps: tuple[Step, ...]
    """Its commands."""

    @property
    def name(self) -> str:
        """What a progress bar calls it."""
        return self.label if self.seed is None else f"{self.label}, seed {self.seed}"

    @property
    def file(self) -> Path:
        """What the run is and how it was asked for."""
        return self.folder.with_name(f"{self.folder.name}.json")

    @property
    def log(self) -> Path:
        """What the run printed."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def left(self) -> list[Step]:
        """The steps that are not done."""
        return [step for step in self.steps if not step.made.is_file()]

    def describe(self) -> dict[str, Any]:
        """For `file`."""
        return {
            "method": self.label,
            "kind": self.kind,
            "concept": self.concept,
            "seed": self.seed,
            "commands": [["erase", *step.arguments] for step in self.steps],
            "settings": {step.name: dict(step.settings) for step in self.steps},
        }


def plan(config: CompareConfig) -> list[Job]:
    """Base, guards, then every other method seed by seed, an edit without anything random with the first seed alone.

    A flag that cannot work is an error here; nothing is written.
    """
    model = config.pretrained_model_name_or_path
    kind = layered(config.config, {"pretrained_model_name_or_path": model}).get("concept_type")
    (concept,) = load_concepts([config.concept], concept_type=kind, model=model)
    name = f"{CANVAS}/{concept.name}" if concept.family == CANVAS else config.concept
    jobs = [_untrained(config, concept.name, BASE, BASE, {"model": model, "concept": name})]
    for entry in (entry for entry in config.entries if entry.kind == "inference"):
        guard = {"guard": entry.method, "concept": name, **entry.settings}
        jobs.append(_untrained(config, concept.name, entry.label, entry.kind, guard))
    trained = [(entry, _settings(config, entry)) for entry in config.entries if entry.kind != "inference"]
    return jobs + [
        _run(config, concept.name, entry, settings, config.seed + number)
        for number in range(config.seeds)
        for entry, settings in trained
        if number == 0 or _has_chance(entry, settings)
    ]


def _has_chance(entry: Entry, settings: Settings) -> bool:
    """Whether another seed gives other weights."""
    copies = entry.method == "speed" and int(settings["edit_augmentations"]) > 0
    return entry.kind == "trained" or settings["mask"] == "random" or copies


def _run(config: CompareConfig, concept: str, entry: Entry, settings: Settings, seed: int) -> Job:
    folder = config.output_dir / RUNS_DIR / slug(entry.label) / f"seed-{seed}"
    seeded = {key: value for key, value in settings.items() if key not in NOT_COMPARED} | {"seed": seed}
    flags = ["--seed", str(seed), "--output_dir", str(folder), *_train_flags(config, entry)]
    steps = [Step(arguments=("train", *flags), settings=seeded, made=folder / MANIFEST_FILE)]
    if config.protocol:
        steps.append(_evaluate(config, folder, {"model": str(folder)}))
    return Job(label=entry.label, kind=entry.kind, concept=concept, seed=seed, folder=folder, steps=tuple(steps))


def _untrained(config: CompareConfig, concept: str, label: str, kind: str, flags: Mapping[str, str]) -> Job:
    folder = config.output_dir / RUNS_DIR / slug(label) / "run"
    common = layered(config.config, {"pretrained_model_name_or_path": config.pretrained_model_name_or_path})
    files = {name: common[name] for name in ("revision", "variant") if common.get(name)}
    step = _evaluate(config, folder, files | dict(flags))
    evaluate_config.check_inputs(
        parse(EvaluateConfig, "erase evaluate", _with_shipped_protocol(config, step.arguments[1:]))
    )
    return Job(label=label, kind=kind, concept=concept, seed=None, folder=folder, steps=(step,))


def _train_flags(config: CompareConfig, entry: Entry) -> list[str]:
    flags = {
        "method": entry.method,
        "concept": config.concept,
        "pretrained_model_name_or_path": config.pretrained_model_name_or_path,
        "data_cache_dir": str(config.data_cache_dir),
    }
    flags |= {"config": config.config} if config.config else {}
    if config.protocol is None:
        flags |= {"num_target_images": config.num_target_images, "num_kept_images": config.num_kept_images}
    proof = ["--no_proof"] if config.protocol else []
    return [*_tokens(flags), *proof, *_tokens(entry.settings)]


def _settings(config: CompareConfig, entry: Entry) -> Settings:
    """config.yaml of the entry's runs, but for seed and folder: the run's own parser reads the same flags."""
    settings = parse(EraseConfig, "erase train", _train_flags(config, entry))
    check_inputs(settings)
    return settings.as_dict()


def _evaluate(config: CompareConfig, folder: Path, model: Mapping[str, str]) -> Step:
    flags: dict[str, Any] = {"base": config.pretrained_model_name_or_path, **model}
    if config.protocol:
        flags |= {"protocol": config.protocol} | dict(_pair(text) for text in config.evaluate)
    else:
        protocol = CANVAS if _own_protocol(config) is None else str(config.output_dir / PROTOCOL_FILE)
        flags |= {"protocol": protocol, "batch_size": PROOF_BATCH_SIZE}
        common = layered(config.config, {"pretrained_model_name_or_path": CANVAS})
        flags |= {"mixed_precision": common.get("mixed_precision", "auto")}
    # A path of ours is no setting: the comparison's folder may be named otherwise the next time.
    settings = {key: value for key, value in flags.items() if key != "model" or value != str(folder)}
    settings |= {} if config.protocol else _counts(config) | {"protocol": CANVAS}
    flags |= {"output_dir": str(folder / EVALUATION_DIR), "data_cache_dir": str(config.data_cache_dir)}
    made = folder / EVALUATION_DIR / EVALUATION_FILE
    return Step(arguments=("evaluate", *_tokens(flags)), settings=settings, made=made)


def _counts(config: CompareConfig) -> dict[str, int]:
    return {name: getattr(config, name) for name in ("num_target_images", "num_kept_images")}


def _own_protocol(config: CompareConfig) -> dict[str, Any] | None:
    """The canvas's protocol with the comparison's own counts; None where they are the shipped ones."""
    shipped = yaml.safe_load((CONFIGS_DIR / "protocols" / f"{CANVAS}.yaml").read_text(encoding="utf-8"))
    own = shipped | _counts(config)
    return None if config.protocol or own == shipped else own


def write_protocol(config: CompareConfig) -> None:
    """Write output_dir/protocol.yaml, where the proof is asked for with other counts than its own."""
    if (own := _own_protocol(config)) is not None:
        write_text(config.output_dir / PROTOCOL_FILE, yaml.safe_dump(own, sort_keys=False))


def _with_shipped_protocol(config: CompareConfig, arguments: Sequence[str]) -> list[str]:
    """The arguments with the shipped protocol in place of the file that is not written yet."""
    own = str(config.output_dir / PROTOCOL_FILE)
    return [CANVAS if argument == own else argument for argument in arguments]


def _tokens(flags: Mapping[str, Any]) -> list[str]:
    """`--key value`; true and false become `--key` and `--no_key`."""
    tokens: list[str] = []
    for key, value in flags.items():
        switch = {"true": f"--{key}", "false": f"--no_{key}"}.get(str(value).lower())
        tokens += [switch] if switch else [f"--{key}", str(value)]
    return tokens


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key.strip(), value.strip()


def differences(job: Job) -> list[str]:
    """`key: there, now` of everything that the run in the job's folder was made with otherwise; empty when it fits."""
    found = []
    for step in job.steps:
        there = _settings_there(job, step)
        if there is not None:
            found += changes(there, step.settings)
    return found


def _settings_there(job: Job, step: Step) -> Settings | None:
    """What a step's result was made with; None when it has not begun."""
    if step.name == "train":
        path = job.folder / CONFIG_FILE
        if not path.is_file():
            return None
        there = yaml.safe_load(path.read_text(encoding="utf-8"))
        # A setting that came with a later version of this package is by default what the run had without it.
        later = {f.name: f.default for f in fields(EraseConfig) if f.name not in there}
        return {key: value for key, value in (later | there).items() if key not in NOT_COMPARED}
    if not job.file.is_file() or not (job.folder / EVALUATION_DIR).is_dir():
        return None
    return json.loads(job.file.read_text(encoding="utf-8"))["settings"].get(step.name)


def check(jobs: list[Job], overwrite: bool) -> list[Job]:
    """The runs that were made with other settings and are to be made again; ValueError unless that was asked for."""
    odd = {job.name: (job, found) for job in jobs if (found := differences(job))}
    if odd and not overwrite:
        name, (job, found) = next(iter(odd.items()))
        others = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
        raise ValueError(
            f"{job.folder} holds {name} made with other settings{others}:\n  "
            + "\n  ".join(found)
            + "\nGive another --output_dir, the settings of before, or make these runs again: --overwrite_output_dir."
        )
    return [job for job, _ in odd.values()]


def _aside(job: Job) -> Path:
    return job.folder.with_name(f".replaced-{job.folder.name}")


def set_aside(job: Job) -> None:
    """Keep a run under another name until the one that takes its place is done."""
    if _aside(job).exists():
        discard(job.folder)  # a replacement that was not finished either
    else:
        job.folder.replace(_aside(job))


def drop_replaced(job: Job) -> None:
    """Remove the run that a finished one has replaced; files of somebody else's stay where they were put."""
    if _aside(job).exists() and not job.left():
        discard(_aside(job))


def next_step(job: Job) -> Step | None:
    """What to run next, if anything; a training that was stopped continues from whatever stage it reached."""
    step = next(iter(job.left()), None)
    begun = is_ours(job.folder) or (job.folder / CONFIG_FILE).is_file()
    if step is None or step.name != "train" or not begun:
        return step
    return replace(step, arguments=(*step.arguments, "--resume_from_checkpoint", LATEST))


def write_job(job: Job) -> None:
    """Write what the run is, before it begins."""
    write_json(job.file, job.describe())
