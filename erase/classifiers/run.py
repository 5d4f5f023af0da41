"""One run of `erase classify`: train a model for each seed, let each method forget, score, write the table."""

import copy
import json
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from ..config import plain_values
from ..files import append_lines, read_json_lines, write_json, write_text
from ..saliency import SaliencyMask
from .config import ClassifyConfig
from .examples import Examples, as_examples, check_split, forget_rows
from .methods import METHODS, OWN_MASK, ForgetSettings, Job, make_mask
from .metrics import score
from .nets import ARCHITECTURES, build, load_classifier, num_classes_of, save_classifier
from .sources import load_source
from .table import FLOOR, ORIGINAL, REFERENCE, as_markdown, as_svg
from .training import TrainSettings, train

ROWS_FILE, CONFIG_FILE, TABLE_FILE, PLOT_FILE = "rows.jsonl", "classify-config.json", "classify.md", "classify.svg"
RESULT_FILE, MASK_FILE = "classify.json", "mask.safetensors"
FLOOR_SEED = 10_000
"""What the second retraining's seed is more than the first's."""
NOT_IDENTITY = ("output_dir", "overwrite_output_dir", "processes", "methods", "seeds", "seed", "save_models")
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """What `classify` returns."""

    model: nn.Module
    """The model without what it was to forget; the one that was given is as it was."""
    mask: SaliencyMask | None
    """Which weights could change; None for all."""
    seconds: float
    """Run time: mask and method."""
    rates: dict[str, float] | None
    """ua, ra, ta and mia in per cent; None without a test set."""


def classify(
    model: nn.Module,
    forget: Any,
    retain: Any,
    *,
    test: Any = None,
    method: str = "salun",
    seed: int = 0,
    training: TrainSettings | None = None,
    **settings: Any,
) -> Forgotten:
    """Make a classifier forget; for a `torch.nn.Module` or transformers model that gives logits (arXiv 2310.12508).

    forget, retain, test: Examples, (inputs, labels) arrays, a datasets.Dataset, a torch dataset, or a folder with a
    folder of pictures a class. method: a key of METHODS. settings: fields of ForgetSettings, such as learning_rate,
    epochs, mask ("salient", "random", "none", a file) and density; a method that has a mask of its own has it unless
    told otherwise. training: for `retrain`. Raises ValueError for sets that overlap, are empty, hold NaN or labels that
    the model's logits do not have.
    """
    if method not in METHODS:
        raise ValueError(f"Unknown method {method!r}: expected one of {', '.join(METHODS)}.")
    parts = [as_examples(part, name) for part, name in ((forget, "forget"), (retain, "retain"), (test, "test")) if
             part is not None]  # fmt: skip
    count = num_classes_of(model, parts[0])
    check_split(parts[0], parts[1], count)
    values: dict[str, Any] = {"mask": OWN_MASK.get(method, "none")} | settings
    job = Job(
        model=copy.deepcopy(model), forget=parts[0], retain=parts[1], num_classes=count,
        settings=ForgetSettings(**values), training=training or TrainSettings(), seed=seed,
    )  # fmt: skip
    done = forgotten(job, method)
    if test is None:
        return done
    return replace(done, rates=score(done.model, parts[0], parts[1], parts[2], seed, _whole_class(*parts[:2])))


def forgotten(job: Job, method: str) -> Forgotten:
    """Mask and method, timed; the job's model is spent. RuntimeWarning where the weights are not finite any more."""
    started = time.perf_counter()
    mask = make_mask(job)
    job.masks = mask.tensors if mask else None
    model = METHODS[method](job)
    seconds = time.perf_counter() - started
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        warnings.warn(f"{method} diverged with seed {job.seed}: lower its learning rate.", RuntimeWarning, stacklevel=2)
    return Forgotten(model=model, mask=mask, seconds=seconds, rates=None)


def _whole_class(forget: Examples, retain: Examples) -> int | None:
    """The class that is forgotten as a whole, if it is one."""
    label = int(forget.labels[0])
    whole = bool((forget.labels == label).all()) and not bool((retain.labels == label).any())
    return label if whole else None


def run_classify(config: ClassifyConfig) -> Path:
    """Run what `config` says and return output_dir; a run that was cut off goes on with the next seed."""
    task = Task(config)
    task.seed_set(config.seed)  # whatever is wrong with data, model or forget set shows before any training
    _open_output_dir(config)
    folder, path = config.output_dir, config.output_dir / ROWS_FILE
    rows = read_json_lines(path) if path.exists() else []
    done = {(row["method"], row["seed"]) for row in rows}
    seeds = range(config.seed, config.seed + config.seeds)
    wanted = {seed: [m for m in config.methods if (m, seed) not in done] for seed in seeds}
    left = {seed: names for seed, names in wanted.items() if names}
    for made in _all_seeds(config, left):
        append_lines(path, made)
        rows += made
    # A seed that methods were added to has its original scored twice.
    once = {(row["method"], row["seed"]): row for row in rows}.values()
    rows = [r for r in once if r["seed"] in seeds and r["method"] in (ORIGINAL, *config.methods)]
    write_json(folder / RESULT_FILE, rows)
    title = f"{config.dataset}, {forgets(config)}, {config.architecture()}"
    table = as_markdown(rows, title)
    write_text(folder / TABLE_FILE, table)
    write_text(folder / PLOT_FILE, as_svg(rows, title))
    print(f"\n{table}\nTable, plot, rows and models: {folder}", file=sys.stderr)
    return folder


def forgets(config: ClassifyConfig) -> str:
    """What is forgotten, for a title: `random 10 %`, `class 3` or `given rows`."""
    if config.forget_fraction is not None:
        return f"random {100 * config.forget_fraction:g} %"
    return f"class {config.forget_class}" if config.forget_class is not None else "given rows"


def _all_seeds(config: ClassifyConfig, left: dict[int, list[str]]) -> Iterator[list[Row]]:
    """Rows of one seed after the other, as they come in."""
    bar = tqdm(total=len(left), desc="classify", unit="seed")
    if config.processes == 1:
        for seed, names in left.items():
            yield Task(config).run(seed, names)
            bar.update()
        return
    # Forked processes would inherit torch's threads in a state that they cannot use.
    with ProcessPoolExecutor(config.processes, mp_context=get_context("spawn")) as pool:
        for made in pool.map(_one_seed, [config] * len(left), left.keys(), left.values()):
            yield made
            bar.update()


def _one_seed(config: ClassifyConfig, seed: int, names: list[str]) -> list[Row]:
    torch.set_num_threads(1)
    return Task(config).run(seed, names)


class Task:
    """Data, forget set and model of a run."""

    def __init__(self, config: ClassifyConfig):
        self.config = config
        self.train_set, self.test_set, self.names = _source(config.dataset, config.label_column)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.label = None if config.forget_class is None else self._label(config.forget_class)
        self.architecture = config.architecture() if config.architecture() in ARCHITECTURES else None

    def _label(self, named: str) -> int:
        if named in self.names:
            return self.names.index(named)
        if named.isdigit() and int(named) < len(self.names):
            return int(named)
        shown = ", ".join(self.names[:20]) + (" …" if len(self.names) > 20 else "")
        raise ValueError(f"There is no class {named!r} in {self.config.dataset}; its classes are {shown}.")

    def seed_set(self, seed: int) -> tuple[Examples, Examples]:
        """What is forgotten and what is kept with this seed."""
        path = self.config.forget_indices
        rows = forget_rows(
            self.train_set.labels, fraction=self.config.forget_fraction, label=self.label, seed=seed,
            indices=None if path is None else _numbers(path),
        )  # fmt: skip
        return self.train_set[rows], self.train_set[~rows]

    def original(self, seed: int) -> nn.Module:
        """The model that is to forget: trained here, or as it was given."""
        shape, count = tuple(self.train_set.inputs.shape[1:]), len(self.names)
        if self.architecture is not None:
            model = build(self.architecture, shape, count, seed).to(self.device)
            return train(model, self.train_set, self.config.training(), seed)
        model, normalization = load_classifier(self.config.architecture(), shape, count)
        if normalization is not None and self.train_set.normalization is not None:
            self.train_set = replace(self.train_set, normalization=normalization)
            self.test_set = replace(self.test_set, normalization=normalization)
        return model.to(self.device).eval()

    def run(self, seed: int, methods: list[str], model: nn.Module | None = None) -> list[Row]:
        """One row for the model as it was and one for each method; `model` is what `original(seed)` gives."""
        model = model or self.original(seed)
        forget, retain = self.seed_set(seed)
        check_split(forget, retain, num_classes_of(model, forget), overlap=False)
        rows = [self._row(ORIGINAL, seed, score(model, forget, retain, self.test_set, seed, self.label))]
        for name in methods:
            method, shift = (REFERENCE, FLOOR_SEED) if name == FLOOR else (name, 0)
            job = self.job(self.config.settings_of(name), copy.deepcopy(model), (forget, retain), seed + 1 + shift)
            done = forgotten(job, method)
            rates = score(done.model, forget, retain, self.test_set, seed, self.label)
            rows.append(self._row(name, seed, rates, done))
            if seed == self.config.seed and self.config.save_models:
                self._save(name, done)
        return rows

    def job(self, settings: ForgetSettings, model: nn.Module, parts: tuple[Examples, Examples], seed: int) -> Job:
        """The job of a model with this data set's classes and training."""
        return Job(
            model=model, forget=parts[0], retain=parts[1], num_classes=len(self.names), settings=settings,
            training=self.config.training(), seed=seed,
        )  # fmt: skip

    def _row(self, method: str, seed: int, rates: dict[str, float], done: Forgotten | None = None) -> Row:
        about = {"dataset": self.config.dataset, "setting": self.config.setting, "class": self.config.forget_class}
        mask = None if done is None else done.mask
        chosen = {"mask": mask and mask.metadata.get("score"), "blocks": mask and _salient_shares(mask)}
        seconds = None if done is None else round(done.seconds, 3)
        rounded = {key: round(value, 4) for key, value in rates.items()}
        return about | {"method": method, "seed": seed} | rounded | {"rte": seconds} | chosen

    def _save(self, name: str, done: Forgotten) -> None:
        folder = self.config.output_dir / "models" / name
        shape = tuple(self.train_set.inputs.shape[1:])
        save_classifier(done.model, folder, self.architecture, shape, len(self.names))
        if done.mask is not None:
            done.mask.save(folder / MASK_FILE)
            done.mask.plot(folder / "mask.png")


def _salient_shares(mask: SaliencyMask) -> dict[str, float]:
    """Block → share of its weights that the mask lets change, in %."""
    return {block.name: round(100 * block.density, 2) for block in mask.by_block()}


@cache
def _source(dataset: str, label_column: str | None) -> tuple[Examples, Examples, tuple[str, ...]]:
    return load_source(dataset, label_column)


def _numbers(path: Path) -> list[int]:
    words = path.read_text().split()
    wrong = next((word for word in words if not word.isdigit()), None)
    if wrong is not None or not words:
        raise ValueError(f"{path} must hold one row number a line, got {wrong or 'an empty file'!r}.")
    return [int(word) for word in words]


def build_classifier_mask(config: ClassifyConfig) -> Path:
    """`erase mask --dataset …`: the saliency mask of the first seed's model, its table and plot, and nothing else."""
    task = Task(config)
    parts = task.seed_set(config.seed)
    _open_output_dir(config)
    settings = replace(config.settings_of("salun"), mask="salient")
    mask = make_mask(task.job(settings, task.original(config.seed), parts, config.seed))
    assert mask is not None
    mask = SaliencyMask(mask.tensors, mask.metadata | {"concept": forgets(config), "model": config.architecture()})
    path = config.output_dir / MASK_FILE
    mask.save(path)
    mask.plot(path.with_suffix(".png"))
    print(mask.table(), file=sys.stderr)
    return path


def _open_output_dir(config: ClassifyConfig) -> None:
    """Refuse a folder that holds something else or another run; an unfinished run of the same settings goes on."""
    folder, path = config.output_dir, config.output_dir / CONFIG_FILE
    if folder.is_file():
        raise ValueError(f"output_dir {folder} is a file; give a folder.")
    plain = json.loads(json.dumps({k: v for k, v in plain_values(config).items() if k not in NOT_IDENTITY}))
    if folder.is_dir() and any(folder.iterdir()):
        if not path.is_file():
            raise ValueError(f"output_dir {folder} holds files that no run of ours wrote; choose another --output_dir.")
        if config.overwrite_output_dir:
            shutil.rmtree(folder)
        elif json.loads(path.read_text()) != plain:
            raise ValueError(
                f"output_dir {folder} holds a run with other settings: choose another --output_dir, or replace it with "
                "--overwrite_output_dir."
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, plain)
