"""Contract of erase.evaluate.metrics.registry: every metric is one row, built by its own file from the flags.

- A row's metric has the row's name; `erase evaluate --help` names every row.
- Metrics that need the same network share it; what a metric lacks is said before anything is drawn.
"""

import re
from pathlib import Path
from typing import Any

import pytest

from erase.evaluate.config import EvaluateConfig
from erase.evaluate.metrics.registry import METRICS, build_metric
from erase.evaluate.protocols import load_protocol
from erase.evaluate.scoring import Metric
from erase.parsing import parse
from tiny_encoders import build_lpips, noise, write_pictures


def built(name: str, **flags: Any) -> Metric:
    config = EvaluateConfig(protocol="canvas", model="canvas", **flags)
    return build_metric(name, config, load_protocol("canvas")[0])


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything that any metric asks for."""
    folder = tmp_path_factory.mktemp("metrics")
    write_pictures(folder / "real", noise(2, 8))
    lpips = build_lpips(folder / "lpips.safetensors")
    return {"fid_reference": folder / "real", "encoder": "e", "classifier": "c", "lpips_weights": lpips}


@pytest.mark.parametrize("name", METRICS)
def test_a_row_builds_the_metric_of_its_name(name: str, flags: dict[str, Any]) -> None:
    metric = built(name, **flags)
    assert isinstance(metric, Metric) and metric.name == name


def test_help_names_every_metric(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(EvaluateConfig, "erase evaluate", ["--help"])
    about = capsys.readouterr().out.partition("--metrics")[2].partition("--channel_order")[0]
    assert set(METRICS) - set(re.findall(r"\w+", about)) == set()


def test_metrics_of_one_network_share_it(tmp_path: Path) -> None:
    weights = tmp_path / "inception.pth"
    scorers = [built(name, inception_weights=weights).scorers()[0] for name in ("fid_vs_base", "kid")]
    assert scorers[0] is scorers[1]
    assert built("kid", inception_weights=tmp_path / "other.pth").scorers()[0] is not scorers[0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fidd", "Unknown metric 'fidd'; there are canvas, nudity, fid, "),
        ("fid", "fid compares with real pictures: give --fid_reference"),
        ("fd_encoder", "needs --encoder"),
        ("fd_encoder_vs_base", "needs --encoder"),
        ("accuracy", "canvas needs a classifier: --classifier"),
        ("mace", r"need a classifier \(--classifier\) or a CLIP \(--clip_model\)"),
    ],
)
def test_what_a_metric_lacks_is_said(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        built(name)
