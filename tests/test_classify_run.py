"""Contract: `erase classify` reads every kind of data set, writes the paper's table, goes on where it stopped.

The shortened benchmark is the real one on the digits with three seeds and a smaller network.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from erase.classifiers.config import ClassifyConfig, method_settings
from erase.classifiers.methods import METHODS
from erase.classifiers.nets import load_classifier
from erase.classifiers.run import Task, run_classify
from erase.classifiers.sources import canvas_pictures, load_source
from erase.classifiers.table import as_markdown, gaps, mean_gap
from erase.classifiers.training import predict
from erase.cli import main
from erase.files import read_json_lines
from erase.runtime.stopping import Stopped
from erase.saliency.mask import SaliencyMask

QUICK = {"model": "mlp", "train_epochs": 12, "train_batch_size": 64}


def pictures(count: int, seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def cifar10(folder: Path) -> None:
    for name, count in (("data_batch_1.bin", 30), ("data_batch_2.bin", 30), ("test_batch.bin", 20)):
        planes = pictures(count, len(name)).transpose(0, 3, 1, 2).reshape(count, -1)
        labels = np.arange(count, dtype=np.uint8)[:, None] % 10
        np.concatenate([labels, planes], axis=1).tofile(folder / name)
    (folder / "batches.meta.txt").write_text("\n".join(f"class{k}" for k in range(10)) + "\n")


def cifar100(folder: Path) -> None:
    for name, count in (("train.bin", 200), ("test.bin", 100)):
        planes = pictures(count, len(name)).transpose(0, 3, 1, 2).reshape(count, -1)
        fine = np.arange(count, dtype=np.uint8)[:, None] % 100
        np.concatenate([fine // 5, fine, planes], axis=1).tofile(folder / name)


def folders(folder: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        for at, name in enumerate(("ant", "bee")):
            place = folder / split / name
            place.mkdir(parents=True)
            for number, picture in enumerate(pictures(count, at)):
                Image.fromarray(picture).save(place / f"{number}.png")


def tiny_imagenet(folder: Path) -> None:
    for at, name in enumerate(("n01", "n02")):
        place = folder / "train" / name / "images"
        place.mkdir(parents=True)
        for number, picture in enumerate(pictures(3, at, 64)):
            Image.fromarray(picture).save(place / f"{number}.JPEG".replace("JPEG", "jpg"))
    (folder / "val" / "images").mkdir(parents=True)
    lines = []
    for number, picture in enumerate(pictures(4, 9, 64)):
        Image.fromarray(picture).save(folder / "val" / "images" / f"val_{number}.jpg")
        lines.append(f"val_{number}.jpg\tn0{1 + number % 2}\t0\t0\t62\t62")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")


def parquet(folder: Path) -> None:
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageColumn

    features = Features({"img": ImageColumn(), "label": ClassLabel(names=["ant", "bee"])})
    for split, count in (("train", 6), ("test", 4)):
        rows = {"img": [Image.fromarray(p) for p in pictures(count, 1)], "label": [k % 2 for k in range(count)]}
        (folder / "data").mkdir(exist_ok=True)
        Dataset.from_dict(rows, features).to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))


@pytest.mark.parametrize(
    ("write", "sizes", "shape", "classes"),
    [
        (cifar10, (60, 20), (3, 32, 32), 10),
        (cifar100, (200, 100), (3, 32, 32), 100),
        (folders, (8, 4), (3, 32, 32), 2),
        (tiny_imagenet, (6, 4), (3, 64, 64), 2),
        (parquet, (6, 4), (3, 32, 32), 2),
    ],
)
def test_pictures_are_read_from_every_format(
    tmp_path: Path, write: Callable[[Path], None], sizes: tuple[int, int], shape: tuple[int, ...], classes: int
) -> None:
    write(tmp_path)
    train, test, names = load_source(str(tmp_path))
    assert (len(train), len(test)) == sizes and len(names) == classes
    assert train.inputs.dtype == torch.uint8 and tuple(train.inputs.shape[1:]) == shape
    batch = train.batch(torch.arange(4), torch.device("cpu"))
    mean, std = (torch.tensor(v)[:, None, None] for v in (train.normalization.mean, train.normalization.std))  # type: ignore[union-attr]
    torch.testing.assert_close(batch, (train.inputs[:4] / 255 - mean) / std)
    if write is cifar10:
        expected = pictures(30, len("data_batch_1.bin"))[3]
        assert np.array_equal(train.inputs[3].permute(1, 2, 0).numpy(), expected) and names[3] == "class3"


def test_bundled_sets_and_arrays(tmp_path: Path) -> None:
    train, test, names = load_source("digits")
    assert (len(train), len(test), len(names)) == (1597, 200, 10)
    ours = np.concatenate([train.inputs.numpy(), test.inputs.numpy()]).reshape(1797, 64)
    assert sorted(map(bytes, ((ours + 1) * 8).astype(np.uint8))) == sorted(
        map(bytes, load_digits().data.astype(np.uint8))
    )
    patients, _, two = load_source("breast-cancer")
    assert patients.inputs.shape[1] == 30 and len(two) == 2 and patients.inputs.std() == pytest.approx(1, abs=0.01)
    first, second = canvas_pictures(300, 100)[0], canvas_pictures(300, 100)[0]
    assert torch.equal(first.inputs, second.inputs) and first.inputs.shape == (200, 3, 16, 16)
    path = tmp_path / "data.npz"
    np.savez(path, x_train=np.zeros((4, 3)), y_train=[0, 1, 0, 1], x_test=np.zeros((2, 3)), y_test=[0, 1])
    assert len(load_source(str(path))[0]) == 4
    np.savez(path, x_train=np.zeros((4, 3)))
    with pytest.raises(ValueError, match="lacks y_train, x_test, y_test; it holds x_train"):
        load_source(str(path))


def test_damaged_and_unknown_sources_are_refused(tmp_path: Path) -> None:
    cifar10(tmp_path)
    whole = (tmp_path / "test_batch.bin").read_bytes()
    (tmp_path / "test_batch.bin").write_bytes(whole[:-5])
    with pytest.raises(ValueError, match="no multiple of 3073"):
        load_source(str(tmp_path))
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(ValueError, match="Expected data_batch_1.bin"):
        load_source(str(tmp_path))
    with pytest.raises(ValueError, match="neither a known name"):
        load_source(str(tmp_path / "nothing-here"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--forget_fraction", "0.1", "--forget_class", "3"], "exactly one of --forget_fraction"),
        ([], "got none of them"),
        (["--forget_fraction", "10"], "forget_fraction must be a share"),
        (["--forget_class", "ten"], "There is no class 'ten' in digits; its classes are 0, 1"),
        (["--forget_fraction", "0.1", "--methods", "salun,retrian"], "Unknown method 'retrian'. Did you mean retrain"),
        (["--forget_fraction", "0.1", "--density", "50"], "density must be a share"),
        (["--forget_fraction", "0.1", "--mask", "no.safetensors"], "there is no file no.safetensors"),
        (["--forget_indices", "no.txt"], "there is no file no.txt"),
    ],
)
def test_bad_flags_end_with_what_was_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["classify", "--dataset", "digits", "--output_dir", str(tmp_path / "out"), *arguments])
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def config_of(folder: Path, **values: object) -> ClassifyConfig:
    given = {"dataset": "digits", "forget_fraction": 0.1, "output_dir": folder} | QUICK | values
    return ClassifyConfig(**given)  # type: ignore[arg-type]


def test_the_short_benchmark_prints_the_papers_table(tmp_path: Path) -> None:
    names = "retrain,retrain-2,ft,ga,rl,salun,salun-soft,iu,boundary-expand,boundary-shrink,l1-sparse,salun-smoothed"
    folder = run_classify(config_of(tmp_path / "out", methods=names, seeds=3))
    rows = json.loads((folder / "classify.json").read_text())
    assert len(rows) == 3 * (1 + len(names.split(",")))
    table = (folder / "classify.md").read_text()
    for row in rows:
        assert min(row[key] for key in ("ua", "ra", "ta", "mia")) >= 0 and f"| {row['method']} |" in table
    assert gaps(rows, "retrain-2") and max(gaps(rows, "retrain-2")) < 6
    original = [row for row in rows if row["method"] == "original"]
    assert all(row["ua"] < 5 and row["ta"] > 90 and row["rte"] is None for row in original)

    def mean(method: str, key: str) -> float:
        return float(np.mean([row[key] for row in rows if row["method"] == method]))

    by_hand = np.mean([abs(mean("ft", key) - mean("retrain", key)) for key in ("ua", "ra", "ta", "mia")])
    assert mean_gap(rows, "ft") == pytest.approx(by_hand)
    assert "<svg" in (folder / "classify.svg").read_text()
    assert SaliencyMask.load(folder / "models" / "salun" / "mask.safetensors").density == pytest.approx(0.5, abs=0.01)
    model, _ = load_classifier(str(folder / "models" / "salun"), (1, 8, 8), 10)
    forget, _ = Task(config_of(tmp_path)).seed_set(0)
    again = 100 * (predict(model, forget).argmax(1) != forget.labels).double().mean().item()
    assert again == pytest.approx(next(r["ua"] for r in rows if r["method"] == "salun" and r["seed"] == 0), abs=1e-3)


def test_a_run_goes_on_with_the_methods_and_seeds_that_it_lacks(tmp_path: Path) -> None:
    folder = run_classify(config_of(tmp_path / "out", methods="ft", train_epochs=2))
    first = read_json_lines(folder / "rows.jsonl")
    run_classify(config_of(tmp_path / "out", methods="ft,ga", train_epochs=2, seeds=2))
    rows = read_json_lines(folder / "rows.jsonl")
    assert rows[: len(first)] == first
    assert sorted((r["method"], r["seed"]) for r in rows if r["method"] in ("ft", "ga")) == [
        ("ft", 0), ("ft", 1), ("ga", 0), ("ga", 1)]  # fmt: skip
    with pytest.raises(ValueError, match="train_epochs: 2 there, 3 now"):
        run_classify(config_of(tmp_path / "out", methods="ft", train_epochs=3))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="no erase command wrote"):
        run_classify(config_of(tmp_path / "full", methods="ft"))


def test_a_run_that_is_stopped_keeps_its_rows_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(job: object) -> None:
        raise KeyboardInterrupt

    flags = {"methods": "ft,rl,l1-sparse", "train_epochs": 2}
    whole = run_classify(config_of(tmp_path / "whole", **flags))
    with monkeypatch.context() as patched:
        patched.setitem(METHODS, "rl", stop)
        with pytest.raises(Stopped, match="Kept: 2 rows of the table. The same command continues"):
            run_classify(config_of(tmp_path / "cut", **flags))
    assert [row["method"] for row in read_json_lines(tmp_path / "cut/rows.jsonl")] == ["original", "ft"]
    cut = run_classify(config_of(tmp_path / "cut", **flags))
    tables = [json.loads((folder / "classify.json").read_text(encoding="utf-8")) for folder in (whole, cut)]
    first, second = ([row | {"rte": 0} for row in table] for table in tables)
    assert first == second


def test_overwriting_takes_our_files_and_no_others(tmp_path: Path) -> None:
    flags: dict[str, object] = {"methods": "ft", "train_epochs": 2}
    folder = run_classify(config_of(tmp_path / "out", **flags))
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    changed = flags | {"train_epochs": 3, "save_models": False, "overwrite_output_dir": True}
    run_classify(config_of(tmp_path / "out", **changed))
    assert (folder / "notes.txt").read_text(encoding="utf-8") == "mine" and not (folder / "models").exists()
    assert yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["train_epochs"] == 3
    assert len(read_json_lines(folder / "rows.jsonl")) == 2


def test_rows_of_another_forget_set_are_not_mixed_in(tmp_path: Path) -> None:
    wanted = tmp_path / "rows.txt"
    flags = {"forget_fraction": None, "forget_indices": wanted, "methods": "ft", "train_epochs": 2}
    wanted.write_text("1\n2\n3\n", encoding="utf-8")
    run_classify(config_of(tmp_path / "out", **flags))
    wanted.write_text("4\n5\n6\n", encoding="utf-8")
    with pytest.raises(ValueError, match="forget_indices_sha256"):
        run_classify(config_of(tmp_path / "out", **flags))


def test_seeds_in_processes_give_the_same_rows(tmp_path: Path) -> None:
    results = []
    for processes in (1, 2):
        config = config_of(tmp_path / str(processes), methods="salun", seeds=2, train_epochs=2, processes=processes)
        rows = json.loads((run_classify(config) / "classify.json").read_text())
        results.append([{key: value for key, value in row.items() if key != "rte"} for row in rows])
    assert results[0] == results[1]


def test_the_mask_command_serves_classifiers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mask"
    flags = ["--forget_class", "3", "--model", "mlp", "--train_epochs", "2", "--density", "0.1"]
    main(["mask", "--dataset", "digits", "--output_dir", str(folder), *flags])
    mask = SaliencyMask.load(folder / "mask.safetensors")
    assert mask.density == pytest.approx(0.1, abs=0.001) and mask.metadata["concept"] == "class 3"
    assert (folder / "mask.png").stat().st_size > 1000
    assert "density" in capsys.readouterr().err


def test_settings_go_from_published_to_the_data_sets_own_to_the_flags() -> None:
    published = method_settings("somebody/else", "random-10", "salun")
    assert (published.learning_rate, published.epochs, published.batch_size) == (0.013, 10, 256)
    assert (published.mask, published.density) == ("salient", 0.5)
    own = method_settings("digits", "random-10", "salun")
    assert own != published and own == method_settings("digits", "random-20", "salun")
    assert method_settings("digits", "random-10", "salun", {"epochs": 7, "density": None}) == replace(own, epochs=7)


def test_the_table_counts_the_distance_from_retraining() -> None:
    rows = [
        {"method": m, "seed": s, "ua": u, "ra": 100.0, "ta": 90.0, "mia": 10.0, "rte": 1.0}
        for m, s, u in (("retrain", 0, 5.0), ("retrain", 1, 7.0), ("salun", 0, 7.0), ("salun", 1, 5.0))
    ]
    assert (mean_gap(rows, "salun"), gaps(rows, "salun")) == (0.0, [0.5, 0.5])
    assert "| salun | 6.00 ± 1.41 (0.00) | 100.00 ± 0.00 (0.00) |" in as_markdown(rows, "x")
