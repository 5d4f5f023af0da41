"""Contract of erase.evaluate.metrics.fidelity and its encoders.

- FID is torchmetrics' to 1e-6, and the closed form on Gaussians; the Inception network is torch-fidelity's; LPIPS is a
  plain numpy computation; KID and CMMD are those of distance.py on the features on disk.
- A figure has the field's name only with the field's weights and real pictures; a hash that is not the published one,
  statistics of another extractor and pickled arrays are refused before anything is read.
- Intervals cover, widen with clusters, and exist for two pictures; one picture is an error.
"""

import importlib
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from erase.evaluate.metrics import encoders
from erase.evaluate.metrics.distance import (
    Moments,
    cmmd,
    frechet_distance_of,
    frechet_distance_of_features,
    kid,
    moments_of,
)
from erase.evaluate.metrics.encoders import ClipImageScorer, EncoderScorer, InceptionScorer
from erase.evaluate.metrics.fidelity import (
    CmmdMetric,
    EncoderFrechetMetric,
    FrechetMetric,
    FrechetVsBaseMetric,
    KidMetric,
    LpipsMetric,
    frechet_floor,
)
from erase.evaluate.metrics.inception import Inception, resize_tensorflow
from erase.evaluate.metrics.reference import Reference, read_statistics, write_statistics
from erase.evaluate.scoring import Scored, load_scored, score_folder
from erase.evaluate.statistics import Z95, cluster_bootstrap, clustered_mean, resampled
from tiny_encoders import RandomFeatures, build_clip, build_inception, build_lpips, noise, write_pictures


def gaussians(n: int, d: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(n, d)) * np.linspace(0.5, 2, d) + shift).astype(np.float32)


# Fréchet distance


@pytest.mark.parametrize(("n", "m"), [(300, 200), (40, 300), (50, 30)])
def test_fid_is_torchmetrics_own(n, m):
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Identity(torch.nn.Module):
        num_features = 64

        def forward(self, x):
            return x.double()

    a, b = gaussians(n, 64), gaussians(m, 64, 1, 0.3)
    theirs = fid.FrechetInceptionDistance(feature=Identity())
    theirs.update(torch.from_numpy(a), real=True)
    theirs.update(torch.from_numpy(b), real=False)
    # Theirs takes complex roots of the rounding errors of singular covariances when samples are fewer than dimensions.
    assert frechet_distance_of_features(a, b) == pytest.approx(theirs.compute().item(), rel=1e-6)


def test_fid_of_statistics_has_the_closed_form_of_gaussians():
    mu, a, b = np.array([1.0, -2.0, 0.5]), np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.25])
    expected = (mu**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    ours = (Moments.of_statistics(mu, np.diag(a), 50), Moments.of_statistics(0 * mu, np.diag(b), 70))
    assert frechet_distance_of(*ours) == pytest.approx(expected, rel=1e-9)


def test_moments_are_read_in_blocks(monkeypatch):
    features = gaussians(500, 8)
    whole = moments_of(features)
    monkeypatch.setattr("erase.evaluate.metrics.distance.BLOCK", 33)
    np.testing.assert_allclose(moments_of(features).covariance, whole.covariance, rtol=1e-12)


def test_floor_is_small_beside_a_shift_and_grows_as_pictures_are_fewer():
    features = gaussians(2000, 16)
    many, few = frechet_floor(features, 1000), frechet_floor(features, 50)
    assert many.n == 1000 and few.n == 50 and few.low <= few.value <= few.high
    assert many.value < few.value < frechet_distance_of_features(features, features + 2)
    assert frechet_floor(features, 1_000_000).n == 1000


# Intervals


@pytest.mark.parametrize("n", [150, 3000])
def test_resampled_is_as_wide_as_the_spread_of_a_mean(n):
    values = np.random.default_rng(0).normal(size=n)
    names = [f"p{row}" for row in range(n)]
    figure = resampled(values.mean(), lambda rows: values[rows].mean(), names)
    assert figure.value == values.mean() and figure.n == n
    assert (figure.high - figure.low) / 2 == pytest.approx(Z95 / math.sqrt(n), rel=0.5)
    prompts = [f"p{row // 10}" for row in range(n)]
    shared = np.repeat(values[::10], 10)
    wide = resampled(shared.mean(), lambda rows: shared[rows].mean(), prompts)
    assert (wide.high - wide.low) / 2 == pytest.approx(Z95 / math.sqrt(n / 10), rel=0.5)


def test_clustered_mean_is_the_bootstrap_over_prompts():
    values = np.random.default_rng(1).normal(size=300)
    prompts = [f"p{row % 30}" for row in range(300)]
    ours, slow = clustered_mean(values, prompts), cluster_bootstrap(values, prompts)
    assert (ours.value, ours.low, ours.high) == pytest.approx((slow.value, slow.low, slow.high), rel=1e-9)


def test_interval_of_a_frechet_distance_covers_that_of_the_population():
    """Shifted Gaussians of 8 dimensions are 8 · 0.25² apart; nine of ten intervals must say so."""
    hits = 0
    for seed in range(10):
        a, b = gaussians(600, 8, seed), gaussians(600, 8, 100 + seed, 0.25)
        names = [str(row) for row in range(600)]
        value = frechet_distance_of_features(a, b)
        figure = resampled(value, lambda r, a=a, b=b: frechet_distance_of_features(a[r], b[r]), names)
        bias = frechet_distance_of_features(a, gaussians(600, 8, 200 + seed))
        hits += figure.low - bias <= 0.5 <= figure.high
    assert hits >= 8


# Statistics files


def test_statistics_come_back_and_another_extractor_is_refused(tmp_path):
    moments, path = moments_of(gaussians(100, 12)), tmp_path / "real.npz"
    write_statistics(path, moments, RandomFeatures())
    back = read_statistics(path, RandomFeatures())
    np.testing.assert_allclose(back.covariance, moments.covariance, rtol=1e-12)
    assert back.n == 100 and frechet_distance_of(back, moments) == pytest.approx(0, abs=1e-9)
    with np.load(path, allow_pickle=False) as file:
        assert set(file.files) == {"mu", "sigma", "n", "extractor"}
    with pytest.raises(ValueError, match=r"(?s)another extractor.*random 0.*random 7"):
        read_statistics(path, RandomFeatures(seed=7))


def test_statistics_without_an_extractor_pickled_or_cut_off_are_refused(tmp_path):
    path = tmp_path / "real.npz"
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3))  # as pytorch-fid writes them
    with pytest.raises(ValueError, match="has mu, sigma but not n, extractor"):
        read_statistics(path, RandomFeatures())
    np.savez(path, mu=np.array([{"a": 1}], object))
    with pytest.raises(ValueError, match="cannot be read"):
        read_statistics(path, RandomFeatures())
    write_statistics(path, moments_of(gaussians(100, 12)), RandomFeatures())
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="cannot be read"):
        read_statistics(path, RandomFeatures())


# Reference folders and metrics


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """Real pictures of mixed sizes and kinds, in a folder of folders."""
    for at, picture in enumerate([*noise(30, 40, 5), *noise(30, 64, 6)]):
        path = tmp_path / "real" / f"part{at % 2}" / f"{at}.{'jpg' if at % 3 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).convert("L" if at == 4 else "RGB").save(path)
    (tmp_path / "real/README.txt").write_text("not a picture")
    return tmp_path / "real"


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of the base's and the erased model's pictures: 40 pictures, half target, half retained."""
    rows = [{"role": "target" if at < 20 else "retain", "prompt": f"prompt {at // 2}"} for at in range(40)]
    before, after = noise(40, 40, 1), noise(40, 40, 1)
    after[:20] = noise(20, 40, 2)
    return write_pictures(tmp_path / "base", before, rows), write_pictures(tmp_path / "erased", after, rows)


def scored(folder: Path, scorer) -> Scored:
    return score_folder(folder, [scorer], progress=False)


def test_distance_to_a_folder_of_real_pictures_is_made_once(real, models, tmp_path):
    scorer, reference = RandomFeatures(), Reference(real, tmp_path / "cache")
    metric = EncoderFrechetMetric(scorer, reference)
    summary = metric.summarize(scored(models[1], scorer))
    kept = load_scored(models[1]).where(role="retain").features["random"]
    reference_features = reference.features(scorer)
    assert reference_features.shape == (60, 12)
    expected = frechet_distance_of_features(kept, reference_features)
    figure = summary.figures["fd_random"]
    assert figure.value == pytest.approx(expected, rel=1e-6) and figure.low <= expected <= figure.high
    assert figure.n == 20 and summary.figures["fd_random_floor"].n == 20
    assert summary.details == {"reference": str(real), "reference_n": 60}

    seen = scorer.seen
    again = EncoderFrechetMetric(scorer, Reference(real, tmp_path / "cache")).summarize(load_scored(models[1]))
    assert again == summary and scorer.seen == seen
    npz = next((tmp_path / "cache").rglob("random.npz"))
    from_file = EncoderFrechetMetric(scorer, Reference(npz, tmp_path)).summarize(load_scored(models[1]))
    assert from_file.figures == {"fd_random": figure}  # no pictures, so no floor
    Image.fromarray(noise(1, 40, 9)[0]).save(real / "another.png")
    assert Reference(real, tmp_path / "cache").moments(scorer).n == 61


def test_distance_to_the_base_has_its_own_name_and_its_floor_is_the_bases(models):
    scorer = RandomFeatures()
    base, erased = (scored(folder, scorer) for folder in models)
    metric = FrechetVsBaseMetric(scorer)
    assert set(metric.summarize(base, base).figures) == {"fd_random_vs_base_floor"}
    assert metric.summarize(erased).figures == {}  # without a base there is nothing to compare with
    figures = metric.summarize(erased, base).figures
    assert set(figures) == {"fd_random_vs_base"}
    assert figures["fd_random_vs_base"].value == pytest.approx(0, abs=1e-6)  # the retained pictures are equal


def test_kernel_distances_are_those_of_the_features_on_disk(real, models, tmp_path):
    scorer, reference = RandomFeatures(), Reference(real, tmp_path / "cache")
    base, erased = (scored(folder, scorer) for folder in models)
    a, b, r = erased.features["random"][20:], base.features["random"][20:], reference.features(scorer)
    for metric, name, direct in (
        (KidMetric(scorer, reference), "kd_inception", lambda x, y: kid(x, y)[0]),
        (CmmdMetric(scorer, reference), "mmd_clip", cmmd),
    ):
        figures = metric.summarize(erased, base).figures
        assert set(figures) == {name, f"{name}_vs_base"}
        assert figures[name].value == pytest.approx(direct(a, r), rel=1e-9)
        assert figures[f"{name}_vs_base"].value == pytest.approx(direct(a, b), rel=1e-9, abs=1e-12)
        assert all(figure.low <= figure.value <= figure.high for figure in figures.values())
        assert set(metric.summarize(base, base).figures) == {name}
    write_statistics(tmp_path / "real.npz", moments_of(r), scorer)
    with pytest.raises(ValueError, match="compares single pictures"):
        KidMetric(scorer, Reference(tmp_path / "real.npz", tmp_path))


def test_two_pictures_have_a_distance_and_one_has_none(tmp_path):
    scorer = RandomFeatures()
    two = scored(write_pictures(tmp_path / "two", noise(2)), scorer)
    other = scored(write_pictures(tmp_path / "other", noise(2, seed=3)), scorer)
    figure = FrechetVsBaseMetric(scorer).summarize(two, other).figures["fd_random_vs_base"]
    assert all(map(math.isfinite, (figure.value, figure.low, figure.high)))
    assert FrechetVsBaseMetric(scorer).summarize(two, two).figures == {}
    one = scored(write_pictures(tmp_path / "one", noise(1)), scorer)
    with pytest.raises(ValueError, match="at least two of them, got 1"):
        FrechetVsBaseMetric(scorer).summarize(one, two)


def test_a_reference_that_is_none_is_refused_at_once(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "absent.npz", tmp_path / "absent"):
        with pytest.raises(ValueError, match="--fid_reference"):
            Reference(path, tmp_path)


# Inception


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights as .safetensors."""
    return build_inception(tmp_path_factory.mktemp("inception") / "random.safetensors")


@pytest.fixture(scope="module")
def pickled(weights: Path) -> Path:
    """The same as the published file has them."""
    torch.save(load_file(weights), weights.with_suffix(".pth"))
    return weights.with_suffix(".pth")


def test_inception_resizes_as_tensorflow_1_does():
    x = torch.arange(12.0).view(1, 1, 3, 4)
    rows, columns = np.minimum(np.arange(6) * 0.5, 2), np.minimum(np.arange(6) * (4 / 6), 3)
    expected = 4 * rows[:, None] + columns[None]  # x is linear, and the corners lie on each other
    np.testing.assert_allclose(resize_tensorflow(x, 6)[0, 0], expected, rtol=1e-6)
    assert torch.equal(resize_tensorflow(x.expand(1, 3, 3, 4)[..., :3], 3), x.expand(1, 3, 3, 4)[..., :3])


def test_inception_is_torch_fidelitys_network(pickled, monkeypatch):
    """Their module alone: the rest of torch-fidelity needs torchvision."""
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        pytest.skip("torch-fidelity is not installed")
    package = ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations or [])
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    theirs = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setattr(encoders, "INCEPTION_SHA256", encoders.file_sha256(pickled)[:8])
    network = theirs.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(pickled)).eval()
    picture = noise(1, 70)[0]
    with torch.no_grad():
        expected = network(torch.from_numpy(picture).permute(2, 0, 1)[None])[0].numpy()
    ours = InceptionScorer(pickled, torch.device("cpu")).score([picture], [{}]).features
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)


def test_inception_weights_are_checked_before_they_are_read(pickled, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"6726825d\.pth: no path was given.*github.*--inception_weights"):
        InceptionScorer().fingerprint()
    with pytest.raises(ValueError, match="absent does not exist"):
        InceptionScorer(tmp_path / "absent").fingerprint()
    scorer = InceptionScorer(pickled, torch.device("cpu"))
    monkeypatch.setattr(torch, "load", lambda *_: pytest.fail("an unknown pickle was opened"))
    with pytest.raises(ValueError, match="not the published file: its sha256 begins with"):
        scorer.score(noise(1), [{}])


def test_fid_bears_its_name_with_the_published_weights_alone(weights, tmp_path, monkeypatch):
    scorer = InceptionScorer(weights, torch.device("cpu"))
    write_statistics(tmp_path / "real.npz", moments_of(gaussians(30, 8)), scorer)
    metric = FrechetMetric(scorer, Reference(tmp_path / "real.npz", tmp_path))
    drawn = Scored(tmp_path, [{"prompt": f"p{row}"} for row in range(20)], {"inception": gaussians(20, 8, 1)})
    assert set(metric.summarize(drawn).figures) == {"fd_inception"}
    assert KidMetric(scorer).title == "kd_inception"
    monkeypatch.setattr(encoders, "INCEPTION_SHA256", encoders.file_sha256(weights)[:8])
    assert set(metric.summarize(drawn).figures) == {"fid"}
    assert KidMetric(scorer).title == "kid"


def test_inception_scores_pictures_of_mixed_sizes(weights, tmp_path):
    scorer = InceptionScorer(weights, torch.device("cpu"))
    features = scorer.score([noise(1, 40)[0], noise(1, 299)[0][:200]], [{}, {}]).features
    assert features is not None and features.shape == (2, scorer.dimensions) and features.dtype == np.float32
    assert np.isfinite(features).all() and not np.array_equal(features[0], features[1])
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not a file of the FID network"):
        InceptionScorer(tmp_path / "other.safetensors").network  # noqa: B018


def test_inception_has_the_published_number_of_weights():
    assert sum(parameter.numel() for parameter in Inception().parameters()) == 21_785_568


# Other encoders


def test_clip_features_are_the_models_own(tmp_path):
    from transformers import CLIPModel

    folder = build_clip(tmp_path / "clip")
    scorer, pictures = ClipImageScorer(str(folder), torch.device("cpu")), noise(3, 50)
    features = scorer.score(pictures, [{}] * 3).features
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        pixels = scorer.checkpoint.pixels(pictures, torch.device("cpu"))
        tokens = torch.tensor([[512, 5, 513]] * 3)
        expected = model(input_ids=tokens, pixel_values=pixels).image_embeds.numpy()
    assert features is not None and features.shape == (3, scorer.dimensions)
    np.testing.assert_allclose(features / np.linalg.norm(features, axis=1, keepdims=True), expected, atol=1e-5)
    assert CmmdMetric(scorer).title == "mmd_clip"


def test_any_vision_model_gives_its_cls_token(tmp_path):
    from transformers import Dinov2Config, Dinov2Model, ViTImageProcessorPil

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    model = Dinov2Model(Dinov2Config(**sizes)).eval()
    model.save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    scorer = EncoderScorer(str(tmp_path), torch.device("cpu"))
    features = scorer.score(noise(2), [{}] * 2).features
    with torch.no_grad():
        expected = model(pixel_values=scorer.checkpoint.pixels(noise(2), torch.device("cpu"))).pooler_output
    assert scorer.dimensions == 16
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_an_encoder_that_is_not_there_is_named_with_source_and_flag(tmp_path):
    with pytest.raises(ValueError, match=r"huggingface\.co/openai/clip-vit-large-patch14-336.*--cmmd_model"):
        ClipImageScorer().fingerprint()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin.*--encoder.*pickled weights are not read"):
        EncoderScorer(str(tmp_path)).fingerprint()


# LPIPS


def naive_lpips(x: np.ndarray, y: np.ndarray, weights: dict[str, np.ndarray]) -> float:
    def convolved(z: np.ndarray, kernel: np.ndarray, bias: np.ndarray, stride: int, pad: int) -> np.ndarray:
        z = np.pad(z, ((0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(z, kernel.shape[2:], (1, 2))[:, ::stride, ::stride]
        return np.maximum(np.tensordot(kernel, windows, ((1, 2, 3), (0, 3, 4))) + bias[:, None, None], 0)

    def layers(picture: np.ndarray) -> list[np.ndarray]:
        shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
        z = ((picture / 127.5 - 1 - shift) / scale).transpose(2, 0, 1)
        made = []
        for number, stride, pad in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
            if number in (3, 6):
                z = np.lib.stride_tricks.sliding_window_view(z, (3, 3), (1, 2))[:, ::2, ::2].max((3, 4))
            z = convolved(z, weights[f"features.{number}.weight"], weights[f"features.{number}.bias"], stride, pad)
            made.append(z)
        return made

    total = 0.0
    for k, (a, b) in enumerate(zip(layers(x), layers(y))):
        a, b = (z / (np.sqrt((z**2).sum(0)) + 1e-10) for z in (a, b))
        total += float((((a - b) ** 2) * weights[f"lin{k}.weight"][0]).sum(0).mean())
    return total


def test_lpips_is_the_direct_computation_and_is_stored(tmp_path):
    weights = build_lpips(tmp_path / "lpips.safetensors")
    rows = [{"role": role} for role in ("target", "target", "retain")]
    before, after = noise(3, 48, 1), noise(3, 48, 2)
    after[2] = before[2]
    base, erased = write_pictures(tmp_path / "base", before, rows), write_pictures(tmp_path / "erased", after, rows)
    metric = LpipsMetric(weights, torch.device("cpu"))
    summary = metric.summarize(load_scored(erased), load_scored(base))
    arrays = {name: tensor.double().numpy() for name, tensor in load_file(weights).items()}
    expected = [naive_lpips(x.astype(np.float64), y.astype(np.float64), arrays) for x, y in zip(before, after)]
    assert expected[2] == 0 and summary.figures["lpips_retain"].value == 0
    assert summary.figures["lpips_target"].value == pytest.approx(np.mean(expected[:2]), rel=1e-4)
    assert [r["lpips"] for r in load_scored(erased).records] == pytest.approx(expected, rel=1e-4)
    assert metric.summarize(load_scored(base), load_scored(base)).figures == {}
    Image.fromarray(after[0]).save(base / "images/00000.png")
    with pytest.raises(ValueError, match=r"00000\.png has been changed"):
        metric.summarize(load_scored(erased), load_scored(base))


def test_lpips_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"no path was given.*alexnet.*--lpips_weights"):
        LpipsMetric(None)
    weights = build_lpips(tmp_path / "lpips.safetensors")
    base, erased = (write_pictures(tmp_path / str(side), noise(1, side)) for side in (64, 48))
    with pytest.raises(ValueError, match="is 48×48, the base's 64×64"):
        LpipsMetric(weights).summarize(load_scored(erased), load_scored(base))
    save_file({"lin0.weight": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match=r"lacks features\.0\.bias"):
        LpipsMetric(weights).summarize(load_scored(write_pictures(tmp_path / "c", noise(1, 64))), load_scored(base))
