"""Every protocol from prompts to report on a tiny pipeline, with tables in their real formats and the real NudeNet."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from erase.cli import main
from erase.concepts.concept import load_family
from tiny_encoders import build_classifier, build_clip, build_inception, noise

IMAGENET = ["tench, Tinca tinca", "English springer, English springer spaniel", "cassette player",
            "chain saw, chainsaw", "church, church building", "French horn, horn", "garbage truck, dustcart",
            "gas pump, gasoline pump", "golf ball", "parachute, chute", "crane"]  # fmt: skip


def evaluate(tmp_path: Path, base: Path, erased: Path, *flags: str, images: int = 3) -> dict:
    """Run the command and return metrics.json, after looking for what every evaluation leaves."""
    out = tmp_path / "evaluation"
    main(["evaluate", "--base", str(base), "--model", str(erased), "--output_dir", str(out), "--data_cache_dir",
          str(tmp_path / "cache"), "--max_images", str(images), "--num_inference_steps", "2", *flags])  # fmt: skip
    for name in ("evaluation.json", "grid.png", "report.html", "report.json"):
        assert (out / name).stat().st_size > 0, name
    metrics = json.loads((out / "metrics.json").read_text())
    for figures in (metrics["base"], metrics["erased"]):
        assert figures and all(f["low"] <= f["value"] <= f["high"] or f["n"] < 4 for f in figures.values())
    return metrics


@pytest.fixture(scope="module")
def models(tiny) -> tuple[Path, Path]:
    return tiny("sd1"), tiny("sd2")


def test_i2p(tmp_path: Path, models) -> None:
    table = tmp_path / "i2p_benchmark.csv"
    head = "prompt,categories,hard,inappropriate_percentage,nudity_percentage,sd_seed,sd_guidance_scale,"
    head += "sd_image_width,sd_image_height\n"
    rows = [f'"a ""quoted"" line\nand {at}","sexual, shocking",0,50.0,{at * 30}.5,{4048592346 + at},7.5,16,16\n'
            for at in range(4)]  # fmt: skip
    table.write_text(head + "".join(rows))
    metrics = evaluate(tmp_path, *models, "--protocol", "i2p/nude50", "--prompts", str(table))
    assert metrics["base"]["nudity_any_0.6"]["n"] == 2
    records = [json.loads(x) for x in (tmp_path / "evaluation/erased/records.jsonl").read_text().splitlines()]
    assert records[1]["prompt"] == 'a "quoted" line\nand 3' and records[1]["seed"] == 4048592349
    assert (tmp_path / "evaluation/erased/scores/nudenet.jsonl").exists()
    assert set(metrics["details"]["nudity"]) == {"base", "erased"}


def test_coco(tmp_path: Path, models) -> None:
    captions = {"images": [{"id": at, "file_name": f"COCO_val2014_{at:012d}.jpg"} for at in range(6)],
                "annotations": [{"id": 10 * at + k, "image_id": at, "caption": f"caption {k} of picture {at}"}
                                for at in range(6) for k in (1, 0)]}  # fmt: skip
    (tmp_path / "captions_val2014.json").write_text(json.dumps(captions))
    (tmp_path / "val2014").mkdir()
    for at, picture in enumerate(noise(6, 48)):
        Image.fromarray(picture).save(tmp_path / f"val2014/COCO_val2014_{at:012d}.jpg")
    weights, clip = build_inception(tmp_path / "inception.safetensors"), build_clip(tmp_path / "clip")
    metrics = evaluate(
        tmp_path, *models, "--protocol", "coco-10k", "--prompts", str(tmp_path / "captions_val2014.json"),
        "--fid_reference", str(tmp_path / "val2014"), "--inception_weights", str(weights), "--clip_model", str(clip),
        images=4,
    )  # fmt: skip
    assert {"fd_inception", "fd_inception_vs_base", "kd_inception", "clip_score"} <= set(metrics["erased"])
    statistics = tmp_path / "val2014.npz"
    main(["statistics", str(tmp_path / "val2014"), str(statistics), "--inception_weights", str(weights),
          "--data_cache_dir", str(tmp_path / "cache")])  # fmt: skip
    again = evaluate(
        tmp_path / "again", *models, "--protocol", "coco-10k", "--prompts", str(tmp_path / "captions_val2014.json"),
        "--fid_reference", str(statistics), "--inception_weights", str(weights), "--metrics", "fid", images=4,
    )  # fmt: skip
    assert again["erased"]["fd_inception"]["value"] == pytest.approx(metrics["erased"]["fd_inception"]["value"])
    assert metrics["protocol"]["num_images"] == 4 and metrics["protocol"]["published_num_images"] == 10_000


def test_imagenette(tmp_path: Path, models) -> None:
    classifier = build_classifier(tmp_path / "resnet", IMAGENET)
    metrics = evaluate(tmp_path, *models, "--protocol", "imagenette", "--concept", "imagenette/church",
                       "--classifier", str(classifier))  # fmt: skip
    assert {"ua", "ira"} <= set(metrics["erased"]) and metrics["concepts"] == ["church"]


def test_unlearncanvas(tmp_path: Path, models) -> None:
    domains = load_family("unlearncanvas").domains
    flags = []
    for domain in ("object", "style"):
        folder = build_classifier(tmp_path / domain, list(domains[domain]))
        flags += [f"--{domain}_classifier", str(folder)]
    metrics = evaluate(tmp_path, *models, "--protocol", "unlearncanvas", "--concept", "unlearncanvas/Van_Gogh", *flags)
    assert {"ua", "ira", "cra", "cra_retained"} <= set(metrics["erased"])


def test_pictures_that_exist(tmp_path: Path) -> None:
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        for at, picture in enumerate(noise(3, 64, seed=len(name))):
            Image.fromarray(picture).save(tmp_path / name / f"{at}.png")
    main(["evaluate", "--protocol", "i2p", "--images", str(tmp_path / "after"), "--base_images",
          str(tmp_path / "before"), "--output_dir", str(tmp_path / "evaluation")])  # fmt: skip
    metrics = json.loads((tmp_path / "evaluation/metrics.json").read_text())
    assert metrics["erased"]["nudity_any_0.6"]["n"] == 3
    kept = np.asarray(Image.open(tmp_path / "evaluation/erased/images/1.png"))
    np.testing.assert_array_equal(kept, np.asarray(Image.open(tmp_path / "after/1.png")))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--protocol", "i2p"], "Nothing to evaluate"),
        (["--protocol", "coco-10k", "--model", "canvas", "--prompts", "none.json"], "none.json"),
        (["--protocol", "imagenette", "--model", "canvas", "--concept", "imagenette/church"], "--classifier"),
        (["--protocol", "imagenette", "--model", "canvas"], "--concept"),
        (["--protocol", "canvas", "--model", "canvas", "--concept", "cat", "--metrics", "fid"], "--fid_reference"),
        (["--protocol", "canvas", "--model", "canvas", "--concept", "cat", "--metrics", "fod"], "Unknown metric 'fod'"),
        (["--protocol", "i2p", "--patch", "a.safetensors"], "--base"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message_before_anything_is_drawn(tmp_path: Path, capsys, flags, message) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *flags, "--output_dir", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
