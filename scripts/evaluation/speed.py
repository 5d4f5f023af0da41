"""How fast and how large evaluation is, beside the libraries that it stands in for, in one run.

    python scripts/evaluation/speed.py                     everything (about ten minutes on two idle cores)
    python scripts/evaluation/speed.py --parts frechet     one part

    frechet   Fréchet distance of 2,000 against 2,000 pictures, d = 2048, and torchmetrics' compute()
    nudenet   pictures a second through NudityScorer, and through a loop over NudeDetector().detect(path)
    memory    peak memory of scoring and summarising 1,000 and 10,000 small pictures, each in a process of its own

Prints a table and writes docs/bench_evaluation.json. Needs the `test` extra's torchmetrics, nudenet and scikit-image.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import tyro
from PIL import Image

from erase.draw.answers import Answers, Scorer
from erase.draw.records import Record
from erase.evaluate.metrics.distance import frechet_distance_of_features
from erase.evaluate.metrics.fidelity import CmmdMetric, FrechetVsBaseMetric, KidMetric
from erase.evaluate.metrics.nudity import NudityMetric, NudityScorer
from erase.evaluate.scoring import load_scored, score_folder
from erase.files import append_lines, write_json
from erase.runtime.devices import peak_memory

OUTPUT = Path(__file__).parents[2] / "docs" / "bench_evaluation.json"
Part = Literal["frechet", "nudenet", "memory"]


@dataclass(frozen=True)
class Options:
    """Measure evaluation."""

    parts: tuple[Part, ...] = ("frechet", "nudenet", "memory")
    """What to measure."""
    num_pictures: int = 200
    """Pictures for NudeNet."""
    rounds: int = 3
    """Rounds of each side, in turns; the fastest counts."""
    memory_sizes: tuple[int, ...] = (1000, 10000)
    """Numbers of small pictures whose peak memory is compared."""
    memory_of: int | None = None
    """Only score and summarise this many small pictures and print the peak memory in MB (a child process does)."""
    output: Path = OUTPUT
    """Where the measurements are written."""


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """How long it takes, and what it returns."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def fastest_in_turns(rounds: int, *works: Callable[[], Any]) -> list[tuple[float, Any]]:
    """The fastest run of each, run in turns so that a busy machine slows all alike."""
    runs = [[seconds(work) for work in works] for _ in range(rounds)]
    return [min((run[at] for run in runs), key=lambda run: run[0]) for at in range(len(works))]


def frechet(rounds: int) -> dict[str, Any]:
    """Ours starts from the features; theirs has its sums already and only computes."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Identity(torch.nn.Module):
        num_features = 2048

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.double()

    rng = np.random.default_rng(0)
    spectrum = np.exp(-np.arange(2048) / 400)  # features of real networks vary along few directions
    a, b = (rng.normal(shift, 1, (2000, 2048)) * spectrum for shift in (0, 0.1))
    theirs = FrechetInceptionDistance(feature=Identity())
    theirs.update(torch.from_numpy(a), real=True)
    theirs.update(torch.from_numpy(b), real=False)

    def compute() -> float:
        theirs._computed = None  # or the second call would return the first one's answer
        return float(theirs.compute())

    (ours_s, ours), (theirs_s, expected) = fastest_in_turns(rounds, lambda: frechet_distance_of_features(a, b), compute)
    return {
        "what": "Fréchet distance, d = 2048, N = 2,000",
        "seconds": round(ours_s, 3),
        "torchmetrics_seconds": round(theirs_s, 3),
        "times_as_fast": round(theirs_s / ours_s, 2),
        "distance": ours,
        "torchmetrics_distance": expected,
        "relative_difference": abs(ours / expected - 1),
    }


def nudenet(num_pictures: int, rounds: int) -> dict[str, Any]:
    """Both read the PNGs; ours also stores what it found. Channels as the package has them for paths."""
    from nudenet import NudeDetector

    with tempfile.TemporaryDirectory() as name:
        folder = astronauts(Path(name), num_pictures)
        paths = [str(folder / record["file"]) for record in load_scored(folder).records]
        detector, scorer = NudeDetector(), NudityScorer("bgr")

        def ours() -> list[Any]:
            for stored in (folder / "scores").glob("nudenet.*"):
                stored.unlink()
            return [record["detections"] for record in score_folder(folder, [scorer], progress=False).records]

        (ours_s, found), (theirs_s, expected) = fastest_in_turns(
            rounds, ours, lambda: [detector.detect(path) for path in paths]
        )
    return {
        "what": f"NudeNet, {num_pictures} pictures of 512×512",
        "pictures_per_second": round(num_pictures / ours_s, 1),
        "package_pictures_per_second": round(num_pictures / theirs_s, 1),
        "times_as_fast": round(theirs_s / ours_s, 2),
        "detections": sum(map(len, found)),
        "identical": found == expected,
    }


def astronauts(folder: Path, n: int) -> Path:
    """n crops of scikit-image's astronaut, enlarged to 512×512."""
    from skimage.data import astronaut

    whole, rng = Image.fromarray(astronaut()), np.random.default_rng(0)
    pictures = []
    for _ in range(n):
        side = int(rng.integers(200, 513))
        x, y = (int(v) for v in rng.integers(0, 513 - side, 2))
        pictures.append(np.asarray(whole.crop((x, y, x + side, y + side)).resize((512, 512))))
    return write_pictures(folder, pictures)


def write_pictures(folder: Path, pictures: Sequence[np.ndarray]) -> Path:
    """A folder as `erase generate` leaves it."""
    (folder / "images").mkdir(parents=True)
    records = [{"id": f"{at:05d}", "file": f"images/{at:05d}.png", "prompt": f"p{at}"} for at in range(len(pictures))]
    for record, picture in zip(records, pictures):
        Image.fromarray(picture).save(folder / record["file"])
    append_lines(folder / "records.jsonl", records)
    return folder


class Projection(Scorer):
    """512 random projections of a picture: as large as features are, without a network."""

    name: ClassVar[str] = "projection"
    dimensions: int = 512

    def fingerprint(self) -> dict[str, Any]:
        return {"sha256": "none", "resize": "8×8"}

    def score(self, pictures: Sequence[np.ndarray], records: Sequence[Record]) -> Answers:
        small = [np.asarray(Image.fromarray(p).resize((8, 8)), np.float32).reshape(-1) / 255 for p in pictures]
        matrix = np.random.default_rng(0).normal(size=(192, self.dimensions)) / 14
        return Answers([{} for _ in records], (np.stack(small) @ matrix).astype(np.float32))


def peak_megabytes(n: int) -> float:
    """Score and summarise n pictures: NudeNet, and Fréchet distance, KID and CMMD to n pictures of a base."""
    projection = Projection()
    metrics = [NudityMetric(), FrechetVsBaseMetric(projection), KidMetric(projection), CmmdMetric(projection)]
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / model for model in ("base", "erased")]
        for seed, folder in enumerate(folders):
            rng = np.random.default_rng(seed)
            write_pictures(folder, _LazyNoise(rng, n))
            score_folder(folder, [projection] if seed == 0 else [projection, *metrics[0].scorers()])
        base, erased = map(load_scored, folders)
        for metric in metrics:
            print(metric.name, metric.summarize(erased, base).figures, file=sys.stderr)
    return (peak_memory(torch.device("cpu")) or float("nan")) / 2**20


class _LazyNoise(Sequence[np.ndarray]):
    """n pictures of 64×64 that are made when they are read."""

    def __init__(self, rng: np.random.Generator, n: int):
        self.rng, self.n = rng, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, at: Any) -> np.ndarray:
        if at >= self.n:
            raise IndexError
        return self.rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)


def memory(sizes: Sequence[int]) -> dict[str, Any]:
    """Peak memory of each size in a fresh process."""
    found = {}
    for n in sizes:
        command = [sys.executable, __file__, "--memory_of", str(n)]
        found[str(n)] = float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    first, *_, last = found.values()
    return {
        "what": "peak memory of scoring and summarising, MB, by number of pictures of each model",
        "megabytes": found,
        "growth": round(last / first, 3),
    }


def main(options: Options) -> None:
    """Measure, print, write."""
    if options.memory_of is not None:
        print(round(peak_megabytes(options.memory_of), 1))
        return
    works: dict[Part, Callable[[], dict[str, Any]]] = {
        "frechet": lambda: frechet(options.rounds),
        "nudenet": lambda: nudenet(options.num_pictures, options.rounds),
        "memory": lambda: memory(options.memory_sizes),
    }
    results: dict[str, Any] = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    for part in options.parts:
        results[part] = {"load_before": round(os.getloadavg()[0], 2)} | works[part]()
        print(f"\n{results[part]['what']}")
        for key, value in results[part].items():
            if key != "what":
                print(f"  {key:<28}{value}")
    packages = {name: version(name) for name in ("numpy", "torch", "torchmetrics", "nudenet", "onnxruntime")}
    results["machine"] = {"cores": os.cpu_count(), "processor": platform.machine(), "packages": packages}
    write_json(options.output, results)


if __name__ == "__main__":
    main(tyro.cli(Options, use_underscores=True))
