"""One run of `erase classify`: train a model for each seed, let each method forget, score, write the table."""

import copy
import hashlib
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from tqdm.auto import tqdm

from ..config import plain_values
from ..files import append_lines, file_sha256, read_json_lines, write_json, write_text
from ..layout import CONFIG_FILE, MASK_FILE
from ..ledger import Ledger, keeping
from ..output import Claim, Output, find
from ..runtime.stopping import explained
from ..saliency.mask import SaliencyMask
from .config import ClassifyConfig
from .examples import Examples, check_split, forget_rows
from .forget import Forgotten, forgotten
from .methods import ForgetJob, make_mask
from .metrics import score
from .nets import ARCHITECTURES, build, load_classifier, num_classes_of, save_classifier
from .settings import FLOOR, ORIGINAL, REFERENCE, ForgetSettings
from .sources import load_source
from .table import as_markdown, as_svg
from .training import train

ROWS_FILE, RESULT_FILE, TABLE_FILE, PLOT_FILE = "rows.jsonl", "classify.json", "classify.md", "classify.svg"
FLOOR_SEED = 10_000
"""What the second retraining's seed is more than the first's."""
NOT_IDENTITY = ("output_dir", "overwrite_output_dir", "processes", "methods", "seeds", "seed", "save_models")
INPUTS = ("dataset", "model", "mask", "forget_indices")
SMALLER = "Lower --processes or --batch_size."
Row = dict[str, Any]


def run_classify(config: ClassifyConfig) -> Path:
    """Run what `config` says and return output_dir; a run that was cut off continues with the row that it lacks."""
    task = Task(config)
    task.seed_set(config.seed)  # whatever is wrong with data, model or forget set shows before any training
    output = _output("classify", task)
    with explained(lambda: _kept(output.work), SMALLER), output.writing() as work:
        write_text(work / CONFIG_FILE, yaml.safe_dump(plain_values(config), sort_keys=False))
        config = replace(config, output_dir=work)
        path = work / ROWS_FILE
        rows = read_json_lines(path) if path.exists() else []
        for row in _missing(config, rows):
            append_lines(path, [row])
            rows.append(row)
        table = _write_table(config, rows)
    print(f"\n{table}\nTable, plot, rows and models: {output.claim.folder}", file=sys.stderr)
    return output.claim.folder


def _output(command: str, task: "Task") -> Output:
    """The folder that the command may write to: an empty one, or one that holds rows of the same settings."""
    config = task.config
    claim = Claim(
        folder=config.output_dir, command=command, settings=task.identity(), overwrite=config.overwrite_output_dir,
        inputs={name: getattr(config, name) for name in INPUTS},
    )  # fmt: skip
    output = find(claim)
    output.refuse_other()
    return output


def _kept(work: Path) -> str:
    rows = read_json_lines(work / ROWS_FILE) if (work / ROWS_FILE).exists() else []
    return f"Kept: {len(rows)} rows of the table. The same command continues with the next."


def _write_table(config: ClassifyConfig, rows: list[Row]) -> str:
    """classify.json, the plot and the table, which is returned, of the methods and seeds that were asked for."""
    # A seed that is continued has its original scored twice.
    once = {(row["method"], row["seed"]): row for row in rows}.values()
    wanted = (ORIGINAL, *config.methods)
    rows = [row for row in once if row["seed"] in _seeds(config) and row["method"] in wanted]
    rows.sort(key=lambda row: (row["seed"], wanted.index(row["method"])))
    write_json(config.output_dir / RESULT_FILE, rows)
    title = f"{config.dataset}, {forgets(config)}, {config.architecture()}"
    table = as_markdown(rows, title)
    write_text(config.output_dir / TABLE_FILE, table)
    write_text(config.output_dir / PLOT_FILE, as_svg(rows, title))
    return table


def _seeds(config: ClassifyConfig) -> range:
    return range(config.seed, config.seed + config.seeds)


def forgets(config: ClassifyConfig) -> str:
    """What is forgotten, for a title: `random 10 %`, `class 3` or `given rows`."""
    if config.forget_fraction is not None:
        return f"random {100 * config.forget_fraction:g} %"
    return f"class {config.forget_class}" if config.forget_class is not None else "given rows"


def _missing(config: ClassifyConfig, rows: list[Row]) -> Iterator[Row]:
    """The rows of every seed that are not there yet, as they are made."""
    done = {(row["method"], row["seed"]) for row in rows}
    wanted = {seed: [m for m in config.methods if (m, seed) not in done] for seed in _seeds(config)}
    left = {seed: names for seed, names in wanted.items() if names}
    with tqdm(total=sum(1 + len(names) for names in left.values()), desc="classify", unit="model") as bar:
        for row in _in_turn(config, left, bar) if config.processes == 1 else _at_once(config, left):
            bar.update()
            yield row


def _in_turn(config: ClassifyConfig, left: dict[int, list[str]], bar: Any) -> Iterator[Row]:
    for seed, names in left.items():
        bar.set_postfix_str(f"seed {seed}: {', '.join(names)}")
        yield from Task(config).run(seed, names)


def _at_once(config: ClassifyConfig, left: dict[int, list[str]]) -> Iterator[Row]:
    """Rows of one seed after the other, `processes` seeds at work."""
    # Forked processes would inherit torch's threads in a state that they cannot use.
    pool = ProcessPoolExecutor(config.processes, get_context("spawn"), initializer=_leave_ctrl_c)
    with pool, _ended_with_us():
        try:
            for made in pool.map(_one_seed, [config] * len(left), left.keys(), left.values()):
                yield from made
        except BrokenProcessPool as error:
            raise MemoryError("one of the processes was ended by the system, most likely for want of memory") from error


def _leave_ctrl_c() -> None:
    """Ctrl-C is the main process's, which ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _ended_with_us() -> Iterator[None]:
    try:
        yield
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise


def _one_seed(config: ClassifyConfig, seed: int, names: list[str]) -> list[Row]:
    torch.set_num_threads(1)
    with keeping(Ledger(config.output_dir)):
        return list(Task(config).run(seed, names))


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

    def run(self, seed: int, methods: list[str], model: nn.Module | None = None) -> Iterator[Row]:
        """One row for the model as it was and one for each method; `model` is what `original(seed)` gives."""
        model = model or self.original(seed)
        forget, retain = self.seed_set(seed)
        check_split(forget, retain, num_classes_of(model, forget), overlap=False)
        yield self._row(ORIGINAL, seed, score(model, forget, retain, self.test_set, seed, self.label))
        for name in methods:
            method, shift = (REFERENCE, FLOOR_SEED) if name == FLOOR else (name, 0)
            job = self.job(self.config.settings_of(name), copy.deepcopy(model), (forget, retain), seed + 1 + shift)
            done = forgotten(job, method)
            rates = score(done.model, forget, retain, self.test_set, seed, self.label)
            if seed == self.config.seed and self.config.save_models:
                self._save(name, done)
            yield self._row(name, seed, rates, done)

    def identity(self) -> dict[str, Any]:
        """What decides the rows: settings, and the bytes of data and files that they only name."""
        plain = {key: value for key, value in plain_values(self.config).items() if key not in NOT_IDENTITY}
        digest = hashlib.sha256()
        for part in (self.train_set, self.test_set):
            for tensor in (part.inputs, part.labels):
                digest.update(tensor.contiguous().numpy().tobytes())
        paths = {name: Path(value) for name in INPUTS[1:] if (value := getattr(self.config, name)) is not None}
        named = {f"{name}_sha256": _sha256(path) for name, path in paths.items() if path.exists()}
        return plain | {"data_sha256": digest.hexdigest()} | named

    def job(self, settings: ForgetSettings, model: nn.Module, parts: tuple[Examples, Examples], seed: int) -> ForgetJob:
        """The job of a model with this data set's classes and training."""
        return ForgetJob(
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


def _sha256(path: Path) -> str:
    """Of a file, or of the weights in a model's folder."""
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()


def _numbers(path: Path) -> list[int]:
    words = path.read_text(encoding="utf-8").split()
    wrong = next((word for word in words if not word.isdigit()), None)
    if wrong is not None or not words:
        raise ValueError(f"{path} must hold one row number a line, got {wrong or 'an empty file'!r}.")
    return [int(word) for word in words]


def build_classifier_mask(config: ClassifyConfig) -> Path:
    """`erase mask --dataset …`: the saliency mask of the first seed's model, its table and plot, and nothing else."""
    task = Task(config)
    parts = task.seed_set(config.seed)
    output = _output("mask", task)
    with explained(lambda: "Nothing is kept; the same command starts again.", SMALLER), output.writing() as work:
        settings = replace(config.settings_of("salun"), mask="salient")
        mask = make_mask(task.job(settings, task.original(config.seed), parts, config.seed))
        assert mask is not None
        mask = SaliencyMask(mask.tensors, mask.metadata | {"concept": forgets(config), "model": config.architecture()})
        mask.save(work / MASK_FILE)
        mask.plot((work / MASK_FILE).with_suffix(".png"))
    print(mask.table(), file=sys.stderr)
    return config.output_dir / MASK_FILE
