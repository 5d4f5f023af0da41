"""Contract of erase.draw.guards.

- Each guard's maths equals a naive float64 re-computation, alone and in the sampling loop of every family it serves.
- At zero strength a guarded pipeline draws the stock pipeline's pictures bit for bit; at full strength the guided
  prediction turns away from the concept.
- A picture does not depend on the other rows of its batch or on earlier calls; the pipeline is left as it was.
- Without a guard a model's identity is what it was; with one, the guard, its settings and its words are part of it.
- What cannot be guarded is refused before anything is drawn.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from drawing import TinyFolder, contents, prompt_rows
from erase.cli import main
from erase.concepts.concept import load_concepts
from erase.draw import guards
from erase.draw.generate import GenerateConfig
from erase.draw.guard_names import GuardName
from erase.draw.guards import GUARDS, SafeLatentDiffusion, Safree
from erase.draw.pipelines import ModelSource, denoiser_of, draw, open_pipeline
from erase.draw.prompts import PromptRow, load_prompts
from erase.draw.records import Record
from erase.evaluate.config import EvaluateConfig, concept_words
from erase.evaluate.run import planned
from erase.files import folder_hash
from erase.models.loading import load_denoiser
from tiny import FAMILIES, each_family

WORDS = "a cat"
FLAT = SafeLatentDiffusion(warmup_steps=1, scale=3, threshold=0.02, momentum_scale=0.4, momentum_beta=0.6)
"""SLD with a warm-up and values between 0 and 1 for every choice of μ, on networks of small outputs."""
SERVED = [(family, name) for family in FAMILIES for name in GUARDS if (family, name) != ("sd3", "safree")]
each_served = pytest.mark.parametrize(("family", "name"), SERVED)


def source(folder: Path, name: str | None = None, words: str | None = WORDS) -> ModelSource:
    return ModelSource(pretrained_model_name_or_path=str(folder), guard=name, guard_concept=words if name else None)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Toy networks are quickest on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows_of(count: int, **changes: Any) -> list[PromptRow]:
    return [replace(row, **changes) for row in prompt_rows(count)]


# Maths


def naive_sld(branches: list[tuple[np.ndarray, ...]], s: SafeLatentDiffusion) -> list[np.ndarray]:
    """γ of each step, one element at a time, straight from the equations."""
    nu, gammas = np.zeros(branches[0][0].shape), []
    for uncond, cond, concept in branches:
        gamma = np.zeros_like(nu)
        for at in np.ndindex(gamma.shape):
            d = s.scale * (cond[at] - concept[at])
            mu = min(1.0, abs(d)) if cond[at] - concept[at] < s.threshold else 0.0
            gamma[at] = mu * (concept[at] - uncond[at]) + s.momentum_scale * nu[at]
        nu = s.momentum_beta * nu + (1 - s.momentum_beta) * gamma
        gammas.append(gamma)
    return gammas


@pytest.mark.parametrize("settings", [FLAT, GUARDS["sld-medium"], GUARDS["sld-strong"], GUARDS["sld-max"]])
def test_sld_guidance_over_steps(settings: SafeLatentDiffusion) -> None:
    rng = np.random.default_rng(0)
    size = min(1 / settings.scale, settings.threshold)  # so that some differences are clamped, and some too large
    branches = [tuple(rng.normal(scale=2 * size, size=(2, 3, 4, 4)) for _ in range(3)) for _ in range(4)]
    momentum = torch.zeros(())
    for (uncond, cond, concept), expected in zip(branches, naive_sld(branches, settings), strict=True):
        f0, fc, fs = (torch.from_numpy(part).float() for part in (uncond, cond, concept))
        gamma, momentum = guards.sld_guidance(f0, fc, fs, momentum, settings)
        np.testing.assert_allclose(gamma.numpy(), expected, rtol=1e-3, atol=1e-6 * size)
        assert gamma.dtype == torch.float32


def naive_projection(vectors: np.ndarray) -> np.ndarray:
    """V·(VᵀV)⁺·Vᵀ for vectors as rows."""
    v = vectors.T.astype(np.float64)
    return v @ np.linalg.pinv(v.T @ v, rcond=guards.RANK_TOLERANCE**2) @ v.T


def test_projections() -> None:
    rng = np.random.default_rng(0)
    vectors, x = rng.normal(size=(4, 12)).astype(np.float32), rng.normal(size=(5, 12))
    for given in (vectors, np.concatenate([vectors, vectors[:2] * 3])):
        basis = guards.span(torch.from_numpy(given))
        assert basis.shape == (4, 12)
        np.testing.assert_allclose(guards.project(torch.from_numpy(x), basis), x @ naive_projection(given), atol=1e-9)
    concept, prompt = guards.span(torch.from_numpy(vectors[:1])), guards.span(torch.from_numpy(vectors))
    p_c, p_i = naive_projection(vectors[:1]), naive_projection(vectors)
    found = guards.safe_projection(torch.from_numpy(x), concept, prompt)
    np.testing.assert_allclose(found, x @ (np.eye(12) - p_c) @ p_i, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.3])
def test_trigger_tokens(alpha: float) -> None:
    rng = np.random.default_rng(1)
    masked, concept = rng.normal(size=(7, 9)), rng.normal(size=(2, 9))
    distance = [float(np.linalg.norm(p - naive_projection(concept) @ p)) for p in masked]
    expected = [d > (1 + alpha) * np.mean(distance[:at] + distance[at + 1 :]) for at, d in enumerate(distance)]
    found = guards.trigger_tokens(torch.from_numpy(masked), guards.span(torch.from_numpy(concept)), alpha)
    assert found.tolist() == expected and 0 < sum(expected) < 7
    assert not guards.trigger_tokens(torch.ones(1, 9), torch.zeros(0, 9), alpha).any()


def test_filter_steps() -> None:
    p = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    for projected, cosine in ((p, 1), (-p, -1), (p.flip(0), 0), (torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 5**-0.5)):
        assert guards.filter_steps(p, projected, 10) == round(10 / (1 + math.exp(cosine - 1)))


# In the sampling loop


class Trace:
    """What a pipeline's denoiser is given and its scheduler receives, step by step."""

    def __init__(self, pipe: Any):
        _, self.denoiser = denoiser_of(pipe)
        self.given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.received: list[Tensor] = []
        stock = pipe.scheduler.step

        def step(output: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.received.append(output.clone())
            return stock(output, *args, **kwargs)

        pipe.scheduler.step = step
        self.denoiser.register_forward_pre_hook(
            lambda module, args, kwargs: self.given.append((args, kwargs)), with_kwargs=True
        )

    def branches(self, concept: dict[str, Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """f_∅, f_c, f_S at every step, from the bare network."""
        return [
            (*self.denoiser.forward(*args, **kwargs)[0].chunk(2), self._concept(args, kwargs, concept))
            for args, kwargs in list(self.given)
        ]

    def _concept(self, args: tuple[Any, ...], kwargs: dict[str, Any], concept: dict[str, Tensor]) -> Tensor:
        latents, t = args or (kwargs["hidden_states"], kwargs["timestep"])
        rows = len(latents) // 2
        same = {key: value.expand(rows, *value.shape[1:]) for key, value in concept.items()}
        added = {key: same.pop(key) for key in ("text_embeds", "time_ids") if key in same}
        options = {"added_cond_kwargs": added} if added else {}
        return self.denoiser.forward(
            latents[:rows], timestep=t[:rows] if t.dim() else t, **same, **options, return_dict=False
        )[0]


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(GUARDS, "sld-medium", FLAT)
    yield


@each_family
@torch.no_grad()
def test_sld_in_every_family(family: str, tiny: TinyFolder, flat: None) -> None:
    rows = rows_of(2, guidance_scale=5.0, num_inference_steps=3)
    pipe = open_pipeline(source(tiny(family), "sld-medium"))
    trace = Trace(pipe)
    draw(pipe, rows)
    concept = load_denoiser(str(tiny(family))).encode([WORDS])
    branches = [tuple(part.double().numpy() for part in step) for step in trace.branches(concept)]
    gammas = naive_sld(branches, FLAT)
    assert len(trace.received) == 3 and all(np.abs(gamma).max() > 1e-4 for gamma in gammas)
    for step, (uncond, cond, _) in enumerate(branches):
        gamma = gammas[step] * (step >= FLAT.warmup_steps)
        expected = uncond + 5 * (cond - uncond - gamma)
        np.testing.assert_allclose(trace.received[step], expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["negative-prompt", "sld-max"])
@each_family
@torch.no_grad()
def test_the_guided_prediction_turns_away_from_the_concept(family: str, name: str, tiny: TinyFolder) -> None:
    rows, traces = rows_of(2, guidance_scale=5.0), {}
    for guard in (None, name):
        pipe = open_pipeline(source(tiny(family), guard))
        traces[guard] = Trace(pipe)
        draw(pipe, rows)
    uncond, _, away = traces[None].branches(load_denoiser(str(tiny(family))).encode([WORDS]))[0]
    change = (traces[name].received[0] - traces[None].received[0]).flatten(1)
    direction = (away - uncond).flatten(1)
    cosine = torch.cosine_similarity(change, direction)
    assert (cosine < -0.5).all(), cosine
    assert (change.norm(dim=1) > 0.1 * direction.norm(dim=1)).all()


@torch.no_grad()
def naive_safree(pipe: Any, prompt: str, words: str, own: np.ndarray, alpha: float) -> tuple[np.ndarray, float]:
    """p_safe of the hidden states `own` (L, D), and 1 − cos(p, p_proj), token by token."""
    pairs = [(pipe.tokenizer, pipe.text_encoder)]
    if hasattr(pipe, "text_encoder_2"):
        pairs.append((pipe.tokenizer_2, pipe.text_encoder_2))

    def sentence(text: str, hidden: int | None) -> np.ndarray:
        parts = []
        for tokenizer, encoder in pairs:
            ids = tokenizer(text, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
            seen = torch.ones_like(ids.input_ids)
            if hidden is not None:
                seen[0, hidden] = 0
            found = encoder(ids.input_ids, attention_mask=seen, output_hidden_states=True)
            states = found.hidden_states[-2] if len(pairs) > 1 else found[0]
            parts.append(states[0, ids.input_ids[0].tolist().index(tokenizer.eos_token_id)].double().numpy())
        return np.concatenate(parts)

    count = len(pipe.tokenizer(prompt).input_ids) - 2
    p_c = naive_projection(np.stack([sentence(phrase, None) for phrase in words.split(",")]))
    masked = np.stack([sentence(prompt, 1 + at) for at in range(count)])
    distance = [float(np.linalg.norm(p - p_c @ p)) for p in masked]
    projected = [naive_projection(masked) @ (p - p_c @ p) for p in own[1 : 1 + count]]
    safe = own.copy()
    for at in range(count):
        if distance[at] > (1 + alpha) * np.mean(distance[:at] + distance[at + 1 :]):
            safe[1 + at] = projected[at]
    a, b = own[1 : 1 + count].ravel(), np.concatenate(projected)
    return safe, float(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_safree_in_every_family(family: str, tiny: TinyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Safree(alpha=0.02, filter_steps=4)
    monkeypatch.setitem(GUARDS, "safree", settings)
    rows = rows_of(2, guidance_scale=5.0, num_inference_steps=5)
    pipe = open_pipeline(source(tiny(family), "safree", "a cat, sat"))
    stock, unet = pipe.unet.forward, pipe.unet
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(unet, "forward", lambda *args, **kwargs: (seen.append(kwargs), stock(*args, **kwargs))[1])
    draw(pipe, rows)
    for at, row in enumerate(rows):
        original = load_denoiser(str(tiny(family))).encode([row.prompt])
        own = original["encoder_hidden_states"][0].detach().double().numpy()
        safe, distance = naive_safree(pipe.pipe, row.prompt, "a cat, sat", own, settings.alpha)
        assert np.abs(safe - own).max() > 0.1
        until = round(4 / (1 + math.exp(-distance)))
        assert 0 < until < 5
        for step, kwargs in enumerate(seen):
            expected = safe if step < until else own
            np.testing.assert_allclose(kwargs["encoder_hidden_states"][2 + at], expected, atol=2e-4)
            if family == "sdxl":
                pooled, same = kwargs["added_cond_kwargs"]["text_embeds"][2 + at], original["text_embeds"][0]
                assert torch.allclose(pooled, same, atol=1e-5) == (step >= until)
    assert torch.equal(seen[0]["encoder_hidden_states"][:2], seen[-1]["encoder_hidden_states"][:2])


@torch.no_grad()
def test_safree_finds_the_style_in_a_prompt_of_the_canvas() -> None:
    pipe = open_pipeline(source(Path("canvas"), "safree", "neon"))
    seen: list[Tensor] = []
    stock = pipe.unet.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["encoder_hidden_states"][-1])
        return stock(*args, **kwargs)

    pipe.unet.forward = forward
    (row,) = rows_of(1, prompt="a cat, neon", num_inference_steps=12)
    draw(pipe, [row])
    words = pipe.tokenizer.convert_ids_to_tokens(pipe.tokenizer(row.prompt).input_ids)
    moved = (seen[0] != seen[-1]).any(dim=-1)
    assert [word for word, has_moved in zip(words, moved) if has_moved] == ["neon</w>"] and moved.sum() == 1
    named = pipe.encode_prompt(["neon"], "cpu", 1, False)[0][0, 2].double()  # at its end token
    before, after = (torch.cosine_similarity(x[moved][0].double(), named, dim=0).abs() for x in (seen[-1], seen[0]))
    assert after < 0.5 * before
    assert torch.equal(seen[6], seen[-1])  # γ = 10 filters 5 to 9 steps, and here the nearest is 6


# Pictures


@each_served
def test_no_strength_is_the_stock_pipeline(
    family: str, name: str, tiny: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(2, guidance_scale=5.0)
    stock = open_pipeline(source(tiny(family)))
    expected = draw(stock, rows)[0]
    strength = {
        "sld-medium": {},  # two steps are over before its warm-up is
        "sld-strong": {"scale": 0.0},
        "sld-max": {"threshold": -math.inf},
        "safree": {"alpha": math.inf},
    }
    if name == "negative-prompt":
        call = {"prompt": [row.prompt for row in rows], "negative_prompt": [WORDS] * 2}
        seeds = [torch.Generator().manual_seed(row.seed) for row in rows]
        expected = stock(**call, generator=seeds, num_inference_steps=2, guidance_scale=5.0, output_type="np").images
        expected = (expected * 255).round().astype(np.uint8)
    else:
        monkeypatch.setitem(GUARDS, name, replace(GUARDS[name], **strength[name]))  # type: ignore[type-var]
    np.testing.assert_array_equal(draw(open_pipeline(source(tiny(family), name)), rows)[0], expected)


@each_served
def test_pictures_depend_on_their_row_alone(
    family: str, name: str, tiny: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in ("sld-medium", "sld-strong"):
        monkeypatch.setitem(GUARDS, name, replace(GUARDS[name], warmup_steps=0))  # type: ignore[type-var]
    rows = rows_of(3, guidance_scale=5.0, num_inference_steps=3)
    pipe = open_pipeline(source(tiny(family), name))
    together = draw(pipe, rows)[0]
    np.testing.assert_array_equal(draw(pipe, rows)[0], together)
    for row, picture in zip(rows, together):
        assert np.abs(draw(pipe, [row])[0][0].astype(int) - picture).max() <= 2
    denoiser = denoiser_of(pipe)[1]
    assert not denoiser._forward_hooks and not denoiser._forward_pre_hooks
    stock = draw(open_pipeline(source(tiny(family))), rows)[0]
    assert all((picture != other).any() for picture, other in zip(together, stock))
    np.testing.assert_array_equal(draw(pipe.pipe, rows)[0], stock)


def test_a_failed_call_leaves_no_hook(tiny: TinyFolder) -> None:
    for name in GUARDS:
        pipe = open_pipeline(source(tiny("sd1"), name))
        with pytest.raises(ValueError, match="divisible by 8"):
            pipe(prompt=["a dog"], guidance_scale=5.0, height=17, width=17)
        assert not pipe.unet._forward_hooks and not pipe.unet._forward_pre_hooks


# Identity


def test_identity(tiny: TinyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny("sd1")
    assert source(folder).sha256() == folder_hash(folder)
    variants = [source(folder, name) for name in GUARDS] + [source(folder, "safree", "a dog")]
    hashes = {variant.sha256() for variant in variants}
    assert len(hashes) == len(variants) and folder_hash(folder) not in hashes
    assert variants[1].label == f"{folder} + sld-medium (a cat)"
    monkeypatch.setitem(GUARDS, "safree", Safree(alpha=0.02))
    assert source(folder, "safree").sha256() not in hashes
    assert set(get_args(GuardName)) == set(GUARDS)


def test_guarded_pictures_have_a_cache_of_their_own(
    drawn: Callable[..., list[Record]], tiny: TinyFolder, tmp_path: Path
) -> None:
    rows, guarded = prompt_rows(2), source(tiny("sd1"), "sld-max")
    for name in ("fresh", "cached"):
        drawn(rows, out=f"plain-{name}", picture_cache=tmp_path / "cache")
        drawn(rows, out=name, source=guarded, picture_cache=tmp_path / "cache")
    assert contents(tmp_path / "fresh") == contents(tmp_path / "cached")
    assert contents(tmp_path / "fresh") != contents(tmp_path / "plain-fresh") == contents(tmp_path / "plain-cached")
    with pytest.raises(ValueError, match="model_sha256"):
        drawn(rows, out="fresh")


# Flags

I2P = "prompt,categories,hard,nudity_percentage,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height\n"


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        (["cat"], {"model": "canvas"}, "a cat"),
        (["neon"], {"model": "canvas"}, "a neon sign"),
        (["imagenette/church"], {}, "a church"),
        (["nudity"], {}, "nudity"),
        (["van-gogh"], {}, "van gogh"),
        (["a zebra"], {"concept_type": "object"}, "zebra"),
    ],
)
def test_words_of_a_concept(names: list[str], options: dict[str, Any], words: str) -> None:
    assert [concept_words(concept) for concept in load_concepts(names, **options)] == [words]


def test_evaluate_guards_the_erased_model_alone(tiny: TinyFolder) -> None:
    config = EvaluateConfig(protocol="canvas", base="canvas", guard="sld-max", concept=("cat", "neon"))
    base, erased = config.sources()["base"], config.sources()["erased"]
    assert base is not None and erased is not None
    assert (base.pretrained_model_name_or_path, base.guard) == ("canvas", None)
    assert (erased.pretrained_model_name_or_path, erased.guard) == ("canvas", "sld-max")
    assert erased.guard_concept == "a cat, a neon sign"
    own = replace(config, model=str(tiny("sd1")), guard_concept="feline").sources()["erased"]
    assert own is not None
    assert (own.pretrained_model_name_or_path, own.guard_concept) == (str(tiny("sd1")), "feline")


def test_the_commands(tiny: TinyFolder, drawn: Callable[..., list[Record]], tmp_path: Path) -> None:
    table, guarded = tmp_path / "i2p.csv", source(tiny("sd1"), "sld-max")
    table.write_text(f"{I2P}a cat,x,0,0.0,5,7,16,16\nsat,x,0,0.0,6,7,16,16\n")
    guard: dict[str, Any] = {"prompts": str(table), "guard": "sld-max", "guard_concept": WORDS}
    evaluation = planned(EvaluateConfig(protocol="i2p", base=str(tiny("sd1")), **guard), Accelerator(cpu=True))
    assert evaluation.models == {"base": source(tiny("sd1")), "erased": guarded}
    flags = [text for name, value in guard.items() for text in (f"--{name}", value)]
    main(["generate", *flags, "--pretrained_model_name_or_path", str(tiny("sd1")), "--num_inference_steps", "2",
          "--mixed_precision", "no", "--output_dir", str(tmp_path / "out")])  # fmt: skip
    rows = [replace(row, num_inference_steps=2) for row in load_prompts(table)]
    drawn(rows, out="same", source=guarded)
    drawn(rows, out="stock")
    ours, same, stock = (
        {name: data for name, data in contents(tmp_path / out).items() if name.endswith(".png")}
        for out in ("out", "same", "stock")
    )
    assert ours == same and ours.keys() == stock.keys() and ours != stock


# Bad input


@pytest.fixture
def folders(tiny: TinyFolder, tmp_path: Path) -> dict[str, Path]:
    """Models that cannot be guarded; of those that are only looked at, the index and config are enough."""
    for name, class_name in (
        ("flux", "FluxPipeline"),
        ("lcm", "StableDiffusionPipeline"),
        ("pixart", "PixArtAlphaPipeline"),
    ):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "model_index.json").write_text(json.dumps({"_class_name": class_name}))
    (tmp_path / "lcm/unet/config.json").write_text('{"time_cond_proj_dim": 256}')
    return {name: tmp_path / name for name in ("flux", "lcm", "pixart")} | {f: tiny(f) for f in FAMILIES}


@pytest.mark.parametrize(
    ("model", "name", "words", "message"),
    [
        (
            "sd1",
            "sld-midium",
            WORDS,
            "Unknown guard 'sld-midium'. Did you mean 'sld-medium'.*There are negative-prompt",
        ),
        ("sd1", "xyzzy", WORDS, "Unknown guard 'xyzzy'. There are"),
        ("sd1", "safree", None, "'safree' needs the concept in words.*--guard_concept"),
        ("sd1", "safree", " , ", "'safree' needs the concept in words, got ' , '"),
        ("sd1", None, WORDS, "--guard_concept 'a cat' needs a --guard"),
        ("flux", "negative-prompt", WORDS, "FluxPipeline, which the guard 'negative-prompt' cannot.*guarded by none"),
        ("flux", "sld-max", WORDS, "it serves StableDiffusionPipeline, StableDiffusionXLPipeline, StableDiffusion3"),
        ("pixart", "sld-max", WORDS, "PixArtAlphaPipeline.*This pipeline can be guarded by negative-prompt"),
        ("sd3", "safree", WORDS, "it serves StableDiffusionPipeline, StableDiffusionXLPipeline.*guarded by negative-"),
        ("lcm", "sld-max", WORDS, "is distilled.*time_cond_proj_dim"),
    ],
)
def test_what_cannot_be_guarded(
    model: str, name: str | None, words: str | None, message: str, folders: dict[str, Path], drawn: Any, tmp_path: Path
) -> None:
    bad = ModelSource(pretrained_model_name_or_path=str(folders[model]), guard=name, guard_concept=words)
    with pytest.raises(ValueError, match=message):
        bad.check()
    with pytest.raises(ValueError, match=message):
        drawn(source=bad)
    assert not (tmp_path / "out").exists()


def test_guidance_that_is_off(drawn: Any, tiny: TinyFolder, tmp_path: Path) -> None:
    rows = [*prompt_rows(2), *rows_of(4, guidance_scale=1.0)[3:]]
    for name in ("negative-prompt", "sld-strong"):
        with pytest.raises(ValueError, match=f"'{name}' acts through.*guidance_scale 1 of row 'r3' turns off.*safree"):
            drawn(rows, source=source(tiny("sd1"), name))
        with pytest.raises(ValueError, match="guidance_scale 1 of the call"):
            draw(open_pipeline(source(tiny("sd1"), name)), rows[2:])
    assert not (tmp_path / "out").exists()
    assert len(drawn(rows, source=source(tiny("sd1"), "safree"))) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["generate", "--prompts", "canvas/cat", "--guard", "safree"], "--guard_concept"),
        (["generate", "--prompts", "canvas/cat", "--guard", "sdl-max", "--guard_concept", "x"], "sld-max"),
        (["evaluate", "--protocol", "i2p", "--base", "canvas", "--guard", "safree", "--prompts", "p.csv"],
         "--guard safree needs --concept"),
        (["evaluate", "--protocol", "i2p", "--images", ".", "--guard", "safree"], "--images already exist"),
        (["evaluate", "--protocol", "i2p", "--guard", "safree"], "Say with --base"),
        (["evaluate", "--protocol", "i2p", "--base", "canvas", "--guard_concept", "x"], "Nothing to evaluate"),
        (["evaluate", "--protocol", "i2p", "--model", "canvas", "--guard_concept", "x"], "needs a --guard"),
        (["evaluate", "--protocol", "i2p", "--base", "canvas", "--guard", "sld-max", "--guard_concept", "x",
          "--prompts", "p.csv"], "guidance_scale 1 of row '000000'"),
    ],
)  # fmt: skip
def test_bad_flags_are_one_message_before_anything_is_drawn(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.csv").write_text(f"{I2P}a cat,x,0,0.0,5,1,16,16\n")
    with pytest.raises(SystemExit) as stop:
        main([*flags, "--output_dir", "out"])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_config_checks_its_guard() -> None:
    with pytest.raises(ValueError, match="Did you mean 'safree'"):
        GenerateConfig(prompts="nudity", guard="safre", guard_concept="x")  # type: ignore[arg-type]
