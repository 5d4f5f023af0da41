"""Contract of the presets: off the canvas each method is set as its authors publish it; the canvas keeps its own.

Counts of weights are those of Stable Diffusion 1.4's UNet, built on the meta device from its configuration.
"""

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from erase import EraseConfig, load_concepts
from erase.config import CANVAS, CONFIGS_DIR, read_config
from erase.methods import METHODS
from erase.models.unet import UNetDenoiser
from erase.saliency.scopes import SCOPES

TRAINED = [name for name, method in METHODS.items() if method.kind == "trained"]
CLIPPED = {"concept-ablation", "forget-me-not", "salun-anchored"}
"""The first two clip at 1 in their authors' code; the third is ours and was tuned so."""


def load(method: str, **changes: object) -> EraseConfig:
    return EraseConfig.load(None, concept="cat", method=method, **changes)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


class TestClipping:
    @pytest.mark.parametrize("method", TRAINED)
    def test_as_published(self, method: str) -> None:
        assert load(method).max_grad_norm == (1.0 if method in CLIPPED else 0.0)

    @pytest.mark.parametrize("name", ["salun-nsfw", "salun-class"])
    def test_settings_that_ship(self, name: str) -> None:
        assert EraseConfig.load(name, concept="nudity").max_grad_norm == 0.0

    def test_the_class_has_saluns_own(self) -> None:
        plain, preset = EraseConfig(concept=("cat",)).as_dict(), load("salun").as_dict()
        assert plain == preset and plain["max_grad_norm"] == 0.0

    @pytest.mark.parametrize("method", TRAINED)
    def test_the_canvas_keeps_what_its_figures_were_made_with(self, method: str) -> None:
        assert load(method, pretrained_model_name_or_path=CANVAS).max_grad_norm == 1.0


SELECTED = {
    "full": (686, 859_520_964),
    "cross-attention": (80, 43_962_560),
    "cross-attention-kv": (32, 19_169_280),
    "self-attention": (80, 49_574_080),
    "all-but-cross-attention": (606, 815_558_404),
    "all-but-cross-attention-and-norms": (388, 815_358_084),
    "all-but-cross-attention-and-ends": (598, 813_495_680),
}


class TestScopes:
    @pytest.mark.parametrize("scope", UNetDenoiser.scopes)
    def test_what_each_selects_of_stable_diffusion(self, unet: UNet2DConditionModel, scope: str) -> None:
        sizes = [p.numel() for name, p in unet.named_parameters() if SCOPES[scope](name)]  # type: ignore[index]
        assert (len(sizes), sum(sizes)) == SELECTED[scope]

    def test_esd_u_trains_linear_and_convolution_layers(self, unet: UNet2DConditionModel) -> None:
        """As its authors' current code chooses them: by the class of the layer."""
        chosen = {
            f"{name}.{key}"
            for name, layer in unet.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d) and "attn2" not in name
            for key, _ in layer.named_parameters(recurse=False)
        }
        within = SCOPES[load("esd-u").scope]
        assert {name for name, _ in unet.named_parameters() if within(name)} == chosen

    def test_the_first_code_of_esd_u_left_out_both_ends(self, unet: UNet2DConditionModel) -> None:
        first, wide = SCOPES["all-but-cross-attention-and-ends"], SCOPES["all-but-cross-attention"]
        left = {name.rpartition(".")[0] for name, _ in unet.named_parameters() if wide(name) and not first(name)}
        assert left == {"time_embedding.linear_1", "time_embedding.linear_2", "conv_norm_out", "conv_out"}

    def test_presets(self) -> None:
        assert load("esd-u").scope == "all-but-cross-attention-and-norms"
        assert load("esd-u", pretrained_model_name_or_path=CANVAS).scope == "all-but-cross-attention"
        assert load("erasediff").scope == "all-but-cross-attention"


class TestNudity:
    def test_the_papers_setting_is_one_pair(self) -> None:
        values = read_config("salun-nsfw")
        assert values["concept"] == ["nudity-published"]
        (concept,) = load_concepts(values["concept"])
        assert concept.forget == ("a photo of a nude person",)
        assert concept.anchor == concept.retain == ("a photo of a person wearing clothes",)
        assert (values["num_concept_images"], values["num_retain_images"]) == (800, 800)

    def test_the_wider_setting_has_its_own_name(self) -> None:
        wide, published = read_config("salun-nsfw-wide"), read_config("salun-nsfw")
        assert wide == published | {"concept": ["nudity"]}
        (concept,) = load_concepts(wide["concept"])
        assert (len(concept.forget), len(concept.retain)) == (18, 26)


def test_every_shipped_config_names_its_method() -> None:
    for path in (CONFIGS_DIR / "methods").glob("*.yaml"):
        assert read_config(path)["method"] == path.stem
