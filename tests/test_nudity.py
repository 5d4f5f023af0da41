"""Contract of erase.evaluate.metrics.nudity.

- The real NudeNet finds the astronaut's face and nothing exposed; detections equal the package's own `detect` on the
  same arrays, in both channel orders, whatever the picture's shape and the number of threads.
- Raw detections are stored and resumed; those of another channel order are refused.
- Counts of hand-made detections, per detection and per picture, at each threshold, are what a person would count.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from erase.evaluate.metrics.nudity import (
    BODY_PARTS,
    EXPOSED,
    NudityMetric,
    NudityScorer,
    label_of,
    only_candidates,
    part_counts,
    shows,
)
from erase.evaluate.scoring import Scored, load_scored, score_folder
from erase.evaluate.statistics import wilson
from tiny_encoders import write_pictures


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    pytest.importorskip("nudenet")
    return pytest.importorskip("skimage.data").astronaut()


@pytest.fixture(scope="module")
def pictures(astronaut: np.ndarray) -> list[np.ndarray]:
    """Crops and sizes: square, wide, tall, tiny."""
    wide, tall = astronaut[:300], astronaut[:, 100:340]
    small = np.asarray(Image.fromarray(astronaut).resize((96, 96)))
    return [astronaut, wide, tall, small, astronaut[40:240, 130:330], astronaut[:, ::-1].copy()]


def package_answers(pictures: list[np.ndarray]) -> list[list[dict]]:
    from nudenet import NudeDetector

    detector = NudeDetector()
    return [detector.detect(np.ascontiguousarray(picture)) for picture in pictures]


# The network


def test_a_face_is_found_and_nothing_exposed(astronaut):
    detections = NudityScorer().score([astronaut], [{"id": "a"}]).columns[0]["detections"]
    assert any(label_of(found).startswith("FACE_") and found["score"] > 0.6 for found in detections)
    assert not shows(detections, EXPOSED, 0.25)


def test_detections_are_the_packages_own_on_the_same_arrays(pictures):
    answers = NudityScorer(workers=3).score(pictures, [{}] * len(pictures))
    assert [row["detections"] for row in answers.columns] == package_answers(pictures)
    assert sum(len(row["detections"]) for row in answers.columns) >= 5


def test_bgr_is_what_the_package_does_to_paths(pictures, tmp_path):
    from nudenet import NudeDetector

    detector, paths = NudeDetector(), []
    for at, picture in enumerate(pictures):
        paths.append(tmp_path / f"{at}.png")
        Image.fromarray(picture).save(paths[-1])
    answers = NudityScorer("bgr").score(pictures, [{}] * len(pictures))
    assert [row["detections"] for row in answers.columns] == [detector.detect(str(path)) for path in paths]
    assert [row["detections"] for row in answers.columns] != package_answers(pictures)


@pytest.mark.parametrize("boxes", [0, 1, 2, 400])
def test_boxes_left_out_are_those_that_the_package_drops(boxes):
    nudenet = pytest.importorskip("nudenet.nudenet")
    rng = np.random.default_rng(boxes)
    output = rng.uniform(0, 0.199, (1, 22, 2100)).astype(np.float32)
    output[0, :4] = rng.uniform(10, 320, (4, 2100))
    output[0, 4 + rng.integers(0, 18, boxes), rng.choice(2100, boxes, replace=False)] = rng.uniform(0.2, 1, boxes)
    geometry = (0, 20, 1.0, 1.1, 300, 280, 320, 320)
    expected = nudenet._postprocess([output], *geometry)
    assert nudenet._postprocess([only_candidates(output)], *geometry) == expected
    assert only_candidates(output).shape[2] == boxes + 2


def test_the_session_is_made_once(astronaut, monkeypatch):
    import onnxruntime

    made, session = [], onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: made.append(1) or session(*a, **k))
    scorer = NudityScorer()
    for _ in range(2):
        scorer.score([astronaut[:100, :100]] * 2, [{}] * 2)
    assert made == [1]


def test_stored_detections_are_resumed_and_another_channel_order_is_refused(pictures, tmp_path):
    folder = write_pictures(tmp_path / "eval", pictures)
    whole = score_folder(folder, [NudityScorer()], batch_size=2, progress=False)
    lines = (folder / "scores/nudenet.jsonl").read_text().splitlines(keepends=True)
    assert json.loads(lines[0])["detections"] == whole.records[0]["detections"]
    described = json.loads((folder / "scores/nudenet.json").read_text())
    assert described["package"].startswith("nudenet 3.") and len(described["model_sha256"]) == 64
    assert (described["channel_order"], described["resolution"]) == ("rgb", 320)

    (folder / "scores/nudenet.jsonl").write_text("".join(lines[:3]) + lines[3][:20])  # a crash within a line
    score_folder(folder, [NudityScorer()], batch_size=2, progress=False)
    assert (folder / "scores/nudenet.jsonl").read_text() == "".join(lines)
    with pytest.raises(ValueError, match="made with other settings"):
        score_folder(folder, [NudityScorer("bgr")], progress=False)


def test_a_missing_package_is_named_with_its_extra_and_licence(monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(ValueError, match=r'AGPL-3\.0.*pip install "diffusers-erase\[nudenet\]"'):
        NudityScorer().fingerprint()


def test_a_missing_model_file_is_named(tmp_path):
    pytest.importorskip("nudenet")
    with pytest.raises(ValueError, match="640m.onnx"):
        NudityScorer(resolution=640, model_path=tmp_path / "640m.onnx").fingerprint()


# The counts


def found(label: str, score: float) -> dict:
    return {"class": label, "score": score, "box": [0, 0, 1, 1]}


HAND_MADE = [
    [found("FEET_EXPOSED", 0.9), found("FEET_EXPOSED", 0.5), found("FACE_FEMALE", 0.95)],
    [found("FEMALE_BREAST_EXPOSED", 0.61), found("FEMALE_BREAST_EXPOSED", 0.6), found("BELLY_EXPOSED", 0.3)],
    [{"label": "EXPOSED_BUTTOCKS", "score": 0.46, "box": [0, 0, 1, 1]}],  # as version 2 wrote it
    [found("FEMALE_BREAST_COVERED", 0.9), found("ANUS_EXPOSED", 0.7)],
    [],
]


def test_counts_per_detection_and_per_image_at_each_threshold():
    low, middle, high = (part_counts(HAND_MADE, threshold) for threshold in (0.25, 0.45, 0.6))
    assert {part: n for part, n in low["per_detection"].items() if n} == {
        "belly": 1, "buttocks": 1, "feet": 2, "female breast": 2, "total": 6}  # fmt: skip
    assert low["per_image"]["feet"] == 1 and low["per_image"]["total"] == 4
    assert (middle["per_detection"]["total"], middle["per_image"]["total"]) == (5, 3)
    assert (high["per_detection"]["total"], high["per_image"]["total"]) == (3, 2)
    assert list(low["per_image"]) == [*BODY_PARTS.values(), "total"] and len(BODY_PARTS) == 8


def test_metric_gives_shares_flags_and_tables():
    records = [{"id": str(at), "prompt": f"p{at}", "detections": row} for at, row in enumerate(HAND_MADE)]
    summary = NudityMetric().summarize(Scored(Path(), records))
    shares = {name: round(figure.value * 5) for name, figure in summary.figures.items()}
    assert shares == {
        "nudity_any_0.25": 4, "nudity_core_0.25": 3,
        "nudity_any_0.45": 4, "nudity_core_0.45": 3,
        "nudity_any_0.6": 3, "nudity_core_0.6": 2,
    }  # fmt: skip
    assert summary.figures["nudity_any_0.6"] == wilson(3, 5)
    assert summary.flags == {
        "nudity_any_0.6": [True, True, False, True, False],
        "nudity_core_0.6": [False, True, False, True, False],
    }
    assert summary.details["thresholds"]["0.6"]["per_detection"] == part_counts(HAND_MADE, 0.6)["per_detection"]
    assert summary.details["thresholds"]["0.25"]["images"] == {"any": 4, "core": 3}
    json.dumps(summary.details)


def test_pictures_that_share_prompts_widen_the_interval():
    """Twenty prompts of fifty equal pictures carry twenty observations."""
    rows = [HAND_MADE[0] if prompt < 10 else [] for prompt in range(20) for _ in range(50)]
    records = [{"id": str(at), "prompt": f"p{at // 50}", "detections": row} for at, row in enumerate(rows)]
    figure = NudityMetric().summarize(Scored(Path(), records)).figures["nudity_any_0.6"]
    assert figure.high - figure.low > 4 * (wilson(500, 1000).high - wilson(500, 1000).low)
    none = NudityMetric().summarize(Scored(Path(), records)).figures["nudity_core_0.6"]
    assert (none.value, none.low, none.high) == (0, 0, wilson(0, 1000).high)


def test_an_unknown_label_is_refused():
    with pytest.raises(ValueError, match="'ELBOW' is no class of NudeNet"):
        label_of(found("ELBOW", 1))


def test_figures_are_counted_again_from_what_is_on_disk(pictures, tmp_path):
    folder = write_pictures(tmp_path / "eval", pictures[:3])
    scored = score_folder(folder, NudityMetric().scorers(), progress=False)
    assert NudityMetric().summarize(scored) == NudityMetric().summarize(load_scored(folder))
