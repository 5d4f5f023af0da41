"""Contract of erase.evaluate, without any trained network.

- Intervals and distances agree with independent implementations (scipy, closed forms).
- Evaluation rows are balanced, held out, and the same whatever else is erased.
- UA, IRA and CRA of hand-made records are what a person would count, for objects, styles and both at once.
- Figures recomputed from the records on disk equal those reported; pictures enter as uint8 only.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from scipy.stats import binomtest

from erase.canvas import OBJECTS, STYLES
from erase.canvas.nets import to_unit_range
from erase.concepts import Concept, load_family
from erase.evaluate.canvas import COMBINATIONS, Reference, distance_to_bank, evaluation_rows, summarize, turns_into
from erase.evaluate.distance import frechet_distance, frechet_distance_of_features, moments_of
from erase.evaluate.grid import comparison_grid
from erase.evaluate.records import load_records, metrics_table, protocol, write_metrics, write_records
from erase.evaluate.statistics import cluster_bootstrap, frechet_bootstrap, wilson

DIM = 6


def concepts(*names: str) -> list[Concept]:
    family = load_family("canvas")
    return [family.concept(name, names) for name in names]


def reference(rng: np.random.Generator) -> Reference:
    labels = [(o, s) for o in range(len(OBJECTS)) for s in range(len(STYLES)) for _ in range(3)]
    return Reference(
        bank=torch.zeros(5, DIM),
        threshold=1.0,
        base_features=torch.from_numpy(rng.normal(size=(len(labels), DIM))).float(),
        base_labels=torch.tensor(labels),
    )


def records_of(rows, judge) -> list[dict]:
    """Records as `judge_pictures` makes them, with `judge(row)` giving (object, style, coherent)."""
    made = []
    for row in rows:
        obj, style, coherent = judge(row)
        judged = {"judged_object": obj, "judged_style": style, "coherent": coherent, "garbage": obj == "garbage"}
        made.append(vars(row) | {"domains": list(row.domains)} | judged)
    return made


def evaluate(names: tuple[str, ...], judge, **sizes: int) -> tuple[list[dict], np.ndarray, Reference]:
    rng = np.random.default_rng(0)
    rows = evaluation_rows(concepts(*names), **sizes)
    return records_of(rows, judge), rng.normal(size=(len(rows), DIM)).astype(np.float32), reference(rng)


# Statistics and distances


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (99, 100), (200, 200), (313, 570)])
def test_wilson_agrees_with_scipy(successes, n):
    ours, theirs = wilson(successes, n), binomtest(successes, n).proportion_ci(method="wilson")
    assert (ours.value, ours.n) == (successes / n, n)
    assert ours.low == pytest.approx(theirs.low, abs=1e-12)
    assert ours.high == pytest.approx(theirs.high, abs=1e-12)


def test_wilson_refuses_impossible_counts():
    with pytest.raises(ValueError, match="successes"):
        wilson(3, 2)


def test_cluster_bootstrap_is_as_wide_as_its_clusters_are_few():
    """Ten prompts of fifty equal answers each carry ten observations, not five hundred."""
    rng = np.random.default_rng(0)
    per_prompt = rng.normal(size=10)
    values, clusters = np.repeat(per_prompt, 50), np.repeat([f"prompt {i}" for i in range(10)], 50)
    ours = cluster_bootstrap(values, clusters.tolist(), seed=1)
    expected = 2 * 1.96 * per_prompt.std() / np.sqrt(10)
    assert ours.value == pytest.approx(per_prompt.mean())
    assert ours.low < ours.value < ours.high
    assert ours.high - ours.low == pytest.approx(expected, rel=0.15)
    assert ours == cluster_bootstrap(values, clusters.tolist(), seed=1)


def random_gaussian(rng: np.random.Generator, d: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    factor = rng.normal(size=(d, rank))
    return rng.normal(size=d), factor @ factor.T / rank


def test_frechet_distance_of_commuting_gaussians_has_a_closed_form():
    mu, a, b = np.array([1.0, -2.0, 0.5]), np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.25])
    expected = (mu**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(mu, np.diag(a), 0 * mu, np.diag(b)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rank", [24, 9])
def test_frechet_distance_agrees_with_sqrtm(rank):
    rng = np.random.default_rng(rank)
    (mu1, s1), (mu2, s2) = random_gaussian(rng, 24, 24), random_gaussian(rng, 24, rank)
    expected = ((mu1 - mu2) ** 2).sum() + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)
    assert frechet_distance(mu1, s1, mu2, s2) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(mu2, s2, mu1, s1) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(mu2, s2, mu2, s2) == pytest.approx(0, abs=1e-6)


def test_moments_are_float64_and_unbiased():
    features = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float16)
    mu, sigma = moments_of(features).mean, moments_of(features).covariance
    assert mu.dtype == sigma.dtype == np.float64
    np.testing.assert_allclose(sigma, np.cov(features.astype(np.float64).T))


def test_frechet_bootstrap_contains_its_value_and_compares_like_with_like():
    rng = np.random.default_rng(0)
    names = [f"prompt {i % 20}" for i in range(400)]
    centres = 5 * rng.normal(size=(20, 4))
    a, b = (np.tile(centres, (20, 1)) + rng.normal(size=(400, 4)) for _ in range(2))
    ours = frechet_bootstrap(a, names, b, names)
    assert ours.value == frechet_distance_of_features(a, b)
    assert ours.low <= ours.value <= ours.high
    assert ours.high < 1  # the prompts' own spread, 25 times that of the pictures, must cancel
    with pytest.raises(ValueError, match="same clusters"):
        frechet_bootstrap(a, names, b, [*names[1:], "another"])


# Rows


@pytest.mark.parametrize("names", [("cat",), ("neon",), ("cat", "dog"), ("cat", "neon")])
def test_rows_are_balanced_unique_and_split_by_role(names):
    rows = evaluation_rows(concepts(*names))
    target = [row for row in rows if row.role == "target"]
    retain = [row for row in rows if row.role == "retain"]
    assert len(target) >= 200 and len(retain) >= 500
    assert len({row.seed for row in rows}) == len(rows)
    assert min(row.seed for row in rows) >= 10_000
    assert all({row.object, row.style} & set(names) for row in target)
    assert not any({row.object, row.style} & set(names) for row in retain)
    for role in (target, retain):
        assert len(set(Counter((row.object, row.style) for row in role).values())) == 1
        assert abs(sum(row.held_out_template for row in role) / len(role) - 0.5) < 0.01
    covered = {(row.object, row.style) for row in rows}
    assert covered == set(COMBINATIONS)


def test_a_picture_of_a_combination_is_the_same_whatever_is_erased():
    """So that the base model's pictures can serve the next concept."""
    cat, neon = ({(r.prompt, r.seed) for r in evaluation_rows(concepts(n), 200, 5_000)} for n in ("cat", "neon"))
    rows = evaluation_rows(concepts("dog"), 12, 228)
    assert {(row.prompt, row.seed) for row in rows} <= cat & neon


def test_held_out_wordings_are_none_of_the_training_prompts():
    cat = concepts("cat")[0]
    rows = [row for row in evaluation_rows([cat]) if row.role == "target"]
    assert all((row.prompt in cat.forget) != row.held_out_template for row in rows)


def test_rows_refuse_what_the_judge_does_not_know():
    stranger = Concept(name="dragon", type="object", forget=("a",), anchor=("b",), retain=("c",), evaluate=("d",))
    with pytest.raises(ValueError, match="dragon"):
        evaluation_rows([stranger])
    with pytest.raises(ValueError, match="No concept"):
        evaluation_rows([])


# Metrics


def test_metrics_of_an_erased_object():
    """Cats turn into dogs in the first wording; photos of cats are garbage, sketches incoherent; neon dogs are lost."""

    def judge(row):
        if row.role == "retain":
            broken = (row.object, row.style) == ("dog", "neon")
            return ("fish" if broken else row.object, "photo" if row.style == "sketch" else row.style, True)
        if row.style == "photo":
            return "garbage", "photo", False
        return "cat" if row.held_out_template else "dog", "neon", row.style != "sketch"

    records, features, ref = evaluate(("cat",), judge, num_target_images=12, num_retain_images=114)
    metrics = summarize(records, features, ref)
    assert metrics["ua"].value == pytest.approx(7 / 12)
    assert metrics["ua_coherent"].value == pytest.approx(4 / 12)
    assert metrics["ua_paraphrase"].value == pytest.approx(1 / 6)
    assert metrics["ira"].value == pytest.approx(113 / 114)
    assert metrics["cra"].value == pytest.approx(4 / 12)
    assert metrics["cra_retained"].value == pytest.approx(95 / 114)
    assert metrics["coherence"].value == pytest.approx((114 + 8) / 126)
    assert metrics["coherence_target"].n == 12
    assert turns_into(records) == {"cat": {"dog": 5, "cat": 5, "garbage": 2}}


def test_metrics_of_an_erased_style():
    """Neon turns into sketch everywhere, and takes the cat's object with it."""

    def judge(row):
        lost = row.role == "target" and row.object == "cat"
        return "dog" if lost else row.object, "sketch" if row.style == "neon" else row.style, True

    metrics = summarize(*evaluate(("neon",), judge))
    assert metrics["ua"].value == metrics["ua_coherent"].value == 1
    assert metrics["cra"].value == pytest.approx(19 / 20)
    assert metrics["ira"].value == metrics["cra_retained"].value == 1


def test_metrics_of_an_object_and_a_style_at_once():
    """A prompt's own domain decides: cats become dogs, neon stays, so only the neon prompts fail."""

    def judge(row):
        return "dog" if row.object == "cat" else row.object, row.style, True

    records, features, ref = evaluate(("cat", "neon"), judge, num_target_images=25)
    metrics = summarize(records, features, ref)
    assert metrics["ua"].value == pytest.approx(5 / 25)  # the neon cat still is neon
    assert metrics["cra"].value == 1 and metrics["cra"].n == 24  # the neon cat has no other domain
    assert metrics["ira"].value == 1
    assert "cra_retained" not in metrics
    assert turns_into(records) == {"cat": {"dog": 6}, "neon": {"neon": 20}}


def test_fd_canvas_sees_the_retained_pictures_alone():
    records, features, ref = evaluate(("cat",), lambda row: (row.object, row.style, True))
    before = summarize(records, features, ref)["fd_canvas"]
    target = [row for row, record in enumerate(records) if record["role"] == "target"]
    features[target] += 100
    assert summarize(records, features, ref)["fd_canvas"] == before
    features += 1
    assert summarize(records, features, ref)["fd_canvas"].value == pytest.approx(before.value + DIM, rel=0.2)


def test_distance_to_bank_is_the_mean_of_the_five_nearest():
    bank = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0], [100.0]])
    found = distance_to_bank(torch.tensor([[0.0], [5.0]]), bank) * bank.std()
    torch.testing.assert_close(found, torch.tensor([2.0, 3.0]))


# Files


def test_metrics_recomputed_from_disk_equal_those_reported(tmp_path: Path):
    records, features, ref = evaluate(("cat",), lambda row: ("dog", row.style, row.seed % 7 > 0))
    metrics = summarize(records, features, ref)
    rows = evaluation_rows(concepts("cat"))
    write_records(tmp_path / "records.jsonl", records, features)
    write_metrics(tmp_path / "metrics.json", metrics, metrics, {"protocol": protocol(rows, 25, 4.0)})
    again = summarize(*load_records(tmp_path / "records.jsonl"), ref)
    assert again == metrics
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["erased"] == {key: vars(figure) for key, figure in again.items()}
    assert written["protocol"]["num_target_images"] == 204
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "records.jsonl", "records.safetensors"]


def test_truncated_records_are_refused(tmp_path: Path):
    records, features, _ = evaluate(("cat",), lambda row: ("dog", row.style, True))
    write_records(tmp_path / "records.jsonl", records, features)
    lines = (tmp_path / "records.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "records.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match="feature rows"):
        load_records(tmp_path / "records.jsonl")


def test_table_has_base_beside_erased():
    base = summarize(*evaluate(("cat",), lambda row: (row.object, row.style, True)))
    erased = summarize(*evaluate(("cat",), lambda row: ("dog", row.style, True)))
    table = metrics_table(base, erased)
    ua = next(line for line in table.splitlines() if line.startswith("UA ↑"))
    assert "0.0 [  0.0,   1.8]" in ua and "100.0 [ 98.2, 100.0]" in ua and "204" in ua


def test_grid_shows_the_same_seeds_twice(tmp_path: Path):
    rows = evaluation_rows(concepts("cat"))
    black = np.zeros((len(rows), 64, 64, 3), np.uint8)
    comparison_grid(tmp_path / "grid.png", rows, black, black + 200)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert (grid == 0).all(-1).sum() >= 24 * 128 * 128
    assert (grid == 200).all(-1).sum() == 24 * 128 * 128
    with pytest.raises(ValueError, match="as many"):
        comparison_grid(tmp_path / "grid.png", rows, black, black[:-1])


def test_pictures_are_uint8_or_refused():
    with pytest.raises(TypeError, match="uint8"):
        to_unit_range(torch.zeros(1, 64, 64, 3))
    white = to_unit_range(torch.full((1, 64, 64, 3), 255, dtype=torch.uint8))
    assert white.shape == (1, 3, 64, 64) and white.min() == 1
