"""Contract of erase.models.tokens and erase.models.schedulers: what goes into a model is what was asked for.

1. A forget prompt whose tell-tale words no text encoder reads is refused, by name and limit; where one encoder reads
   them it is not. Other prompts that are cut off are warned of.
2. One way to set a scheduler: whatever a base's scheduler config leaves out is set for latents, not for pixels, in
   training pictures as in scored ones.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DDIMScheduler

from erase import Concept, Denoiser, EraseConfig, erase, load_concepts, load_denoiser
from erase.models.schedulers import set_scheduler
from erase.models.tokens import check_prompts_fit
from erase.run import build_only_mask
from tiny import FAMILIES, each_family

TinyFolder = Callable[[str], Path]
SHORT = Concept(
    name="cat", type="object", forget=("a cat",), anchor=("a dog",), retain=("a car",), evaluate=("the cat",)
)
LONG = "a very old big small red green blue house and so "  # 38 letters, of which a tiny CLIP reads as many
"""One letter is one token of the tiny tokenizers, which read 40 with start and end."""


def concept(**changes: str) -> Concept:
    return replace(SHORT, **{key: (value,) for key, value in changes.items()})


class TestPromptsFit:
    @each_family
    def test_short_prompts(self, tiny: TinyFolder, family: str) -> None:
        assert check_prompts_fit(load_denoiser(str(tiny(family))), [SHORT]) == []

    @pytest.mark.parametrize("family", ["sd1", "sdxl"])
    def test_the_concepts_word_is_cut_off(self, tiny: TinyFolder, family: str) -> None:
        long = concept(forget=LONG + "a cat", anchor=LONG + "a dog")
        with pytest.raises(
            ValueError, match=r"'cat'.*house and so a cat' is longer than the 40 tokens.*'a cat' is cut off"
        ):
            check_prompts_fit(load_denoiser(str(tiny(family))), [SHORT, long])

    @pytest.mark.parametrize("scope", ["full", "text-encoder"])
    def test_of_two_words_one_is_cut_off(self, tiny: TinyFolder, scope) -> None:
        half = concept(forget="a cat in a very old big small red green blue hat with cats", anchor="a dog in " + LONG)
        with pytest.raises(ValueError, match="its anchor .* lacks. Shorten both"):
            check_prompts_fit(load_denoiser(str(tiny("sd1")), scope=scope), [half])

    def test_the_anchors_word_is_cut_off(self, tiny: TinyFolder) -> None:
        """All that is read of both is the same."""
        with pytest.raises(ValueError, match="reads 40 tokens: nothing would be erased"):
            check_prompts_fit(load_denoiser(str(tiny("sd1"))), [concept(forget=LONG, anchor=LONG + "a dog")])

    def test_sd3_reads_as_far_as_t5_does(self, tiny: TinyFolder) -> None:
        denoiser = load_denoiser(str(tiny("sd3")))
        long = concept(forget=LONG + "a cat", anchor=LONG + "a dog")
        assert [reader.limit for reader in denoiser.text_readers()] == [40, 40, 256]
        assert check_prompts_fit(denoiser, [long]) == []
        with pytest.raises(ValueError, match="longer than the 256 tokens"):
            check_prompts_fit(denoiser, [concept(forget=8 * LONG + "a cat", anchor=8 * LONG + "a dog")])
        denoiser.pipeline.text_encoder_3 = None  # as many who are short of memory load it
        with pytest.raises(ValueError, match="longer than the 40 tokens"):
            check_prompts_fit(denoiser, [long])

    def test_sdxl_needs_one_of_its_two(self, tiny: TinyFolder) -> None:
        denoiser = load_denoiser(str(tiny("sdxl")))
        wide = type(denoiser.pipeline.tokenizer).from_pretrained(tiny("sdxl") / "tokenizer_2", model_max_length=80)
        denoiser.pipeline.tokenizer_2 = wide
        assert check_prompts_fit(denoiser, [concept(forget=LONG + "a cat", anchor=LONG + "a dog")]) == []

    @pytest.mark.parametrize("role", ["retain", "evaluate"])
    def test_other_prompts_are_warned_of(self, tiny: TinyFolder, role: str) -> None:
        (line,) = check_prompts_fit(load_denoiser(str(tiny("sd1"))), [concept(**{role: LONG + "a boat"})])
        assert line.startswith("Prompts longer than the 40 tokens") and "(1 of 4)" in line and "'a boat' of" in line

    def test_a_long_pair_that_differs_early_is_warned_of(self, tiny: TinyFolder) -> None:
        pair = concept(forget="a cat and " + LONG, anchor="a dog and " + LONG)
        (line,) = check_prompts_fit(load_denoiser(str(tiny("sd1"))), [pair])
        assert "(2 of 4)" in line

    def test_the_canvas_reads_all_that_ships_for_it(self) -> None:
        denoiser = load_denoiser("canvas")
        assert [reader.limit for reader in denoiser.text_readers()] == [24]
        for name in ("cat", "pixel art"):
            assert check_prompts_fit(denoiser, load_concepts([name], model="canvas")) == []
        words = "a photo of a very old big small red green blue white black yellow house and a tree and a boat and a "
        with pytest.raises(ValueError, match="longer than the 24 tokens that this model reads.*cat' is cut off"):
            check_prompts_fit(denoiser, [concept(forget=words + "cat", anchor=words + "dog")])


class TestRuns:
    @pytest.fixture
    def config(self, tiny: TinyFolder, tmp_path: Path) -> Callable[..., EraseConfig]:
        def make(prompts: Concept, method: str) -> EraseConfig:
            path = tmp_path / "cat.yaml"
            data = asdict(prompts) | {"family": None}
            path.write_text(
                yaml.safe_dump({key: list(v) if isinstance(v, tuple) else v for key, v in data.items() if v})
            )
            folders = {"output_dir": tmp_path / "out", "data_cache_dir": tmp_path / "cache"}
            base = str(tiny("sd1"))
            return EraseConfig.load(
                None, concept=str(path), pretrained_model_name_or_path=base, method=method, **folders
            )

        return make

    @pytest.mark.parametrize(("method", "run"), [("salun", erase), ("uce", erase), ("salun", build_only_mask)])
    def test_nothing_is_made_for_a_prompt_that_is_cut(
        self, config: Callable[..., EraseConfig], method: str, run: Callable[[EraseConfig], Path]
    ) -> None:
        cut = config(concept(forget=LONG + "a cat", anchor=LONG + "a dog"), method)
        with pytest.raises(ValueError, match="longer than the 40 tokens that this model reads"):
            run(cut)
        assert not cut.data_cache_dir.exists() and not (cut.output_dir / "unet").exists()

    def test_a_warning_is_one_line(
        self, config: Callable[..., EraseConfig], capsys: pytest.CaptureFixture[str]
    ) -> None:
        erase(config(concept(retain=LONG + "a boat"), "uce"))
        assert capsys.readouterr().err.count("Prompts longer than the 40 tokens") == 1


@pytest.fixture
def unsaid(tiny: TinyFolder, tmp_path: Path) -> Callable[[str], Denoiser]:
    """The tiny SD1 with a scheduler of another class, whose config says nothing of clip_sample."""

    def build(scheduler: str) -> Denoiser:
        folder = tmp_path / scheduler
        shutil.copytree(tiny("sd1"), folder)
        path = folder / "scheduler" / "scheduler_config.json"
        config = json.loads(path.read_text()) | {"_class_name": scheduler, "skip_prk_steps": True}
        path.write_text(json.dumps({key: value for key, value in config.items() if key != "clip_sample"}))
        index = folder / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", scheduler]}))
        return load_denoiser(str(folder))

    return build


class TestSchedulers:
    def test_latents_are_not_clipped_where_the_config_says_nothing(self, unsaid: Callable[[str], Denoiser]) -> None:
        """PNDM, as Stable Diffusion 1.4's folder has it, knows no clip_sample, and DDIM's own default is to clip."""
        denoiser = unsaid("PNDMScheduler")
        config = denoiser.pipeline.scheduler.config
        assert "clip_sample" not in config
        latents = {"data": denoiser.sample_latents(["a cat"], [0], 4, 3.0, solver="ddim")}
        for clip in (False, True):
            ddim = DDIMScheduler.from_config(config, clip_sample=clip, set_alpha_to_one=False)
            denoiser.pipeline.scheduler = ddim
            latents[f"clip {clip}"] = denoiser.sample_latents(["a cat"], [0], 4, 3.0)
        assert torch.equal(latents["data"], latents["clip False"])
        assert latents["data"].abs().max() > 1.5 and not torch.equal(latents["data"], latents["clip True"])

    def test_the_pipelines_own_scheduler_comes_back(self, unsaid: Callable[[str], Denoiser]) -> None:
        denoiser = unsaid("PNDMScheduler")
        stock = denoiser.pipeline.scheduler
        denoiser.sample_latents(["a cat"], [0], 2, 3.0, solver="dpm++")
        with pytest.raises(ValueError, match="Unknown scheduler 'dpm'; choose default, ddim"):
            denoiser.sample_latents(["a cat"], [0], 2, 3.0, solver="dpm")
        assert denoiser.pipeline.scheduler is stock

    def test_a_scheduler_for_another_kind_of_noise_is_refused(self, tiny: TinyFolder) -> None:
        with pytest.raises(ValueError, match=r"FlowMatchEulerDiscreteScheduler, which ddim cannot.*`default`"):
            load_denoiser(str(tiny("sd3"))).sample_latents(["a cat"], [0], 2, 3.0, solver="ddim")

    @pytest.mark.parametrize("family", FAMILIES)
    def test_default_is_the_pipelines_own(self, tiny: TinyFolder, family: str) -> None:
        pipe = load_denoiser(str(tiny(family))).pipeline
        stock = pipe.scheduler
        set_scheduler(pipe, "default")
        assert pipe.scheduler is stock
