"""Contract: scores equal a plain autograd loop and reuse its gradients; top-k equals a full sort; masks are exact.

Ties go to the earlier position, so exactly k weights are chosen; a mask file takes one bit a weight; a mask of another
model, a damaged file and an empty mask are refused.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from erase.files import atomic_save
from erase.saliency.layers import LayerDensity, block_of
from erase.saliency.mask import SaliencyMask
from erase.saliency.scores import Score, saliency_scores
from erase.saliency.topk import kth_largest, top_k


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 4)
    return nn.Sequential(*layers).to(dtype)


def losses_of(module: nn.Module, batches: int = 3, dtype: torch.dtype = torch.float64) -> list[Callable[[], Tensor]]:
    data = torch.randn(batches, 5, 2, 4, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    return [lambda x=x: module(x).square().mean() for x in data]


def reference_scores(module: nn.Module, score: Score) -> dict[str, Tensor]:
    """The three definitions, with autograd.grad and no accumulation in place."""
    module.eval()
    named = dict(module.named_parameters())
    batches = [torch.autograd.grad(loss(), list(named.values())) for loss in losses_of(module)]
    columns = [torch.stack(column) for column in zip(*batches, strict=True)]
    if score == "fisher":
        values = [column.abs().sum(0) for column in columns]
    else:
        values = [column.sum(0).abs() for column in columns]
    if score == "snip":
        values = [value * p.detach().abs() for value, p in zip(values, named.values(), strict=True)]
    return dict(zip(named, values, strict=True))


@pytest.mark.parametrize("score", ["gradient", "fisher", "snip"])
def test_scores_equal_a_plain_loop(score: Score) -> None:
    module = network()
    scores = saliency_scores(module, losses_of(module), score)
    expected = reference_scores(network(), score)
    assert list(scores) == list(expected)
    for name in expected:
        torch.testing.assert_close(scores[name], expected[name], rtol=1e-12, atol=1e-15)


def test_the_gradients_become_the_scores() -> None:
    module = network()
    places: dict[str, int] = {}
    for name, parameter in module.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: places.update({name: p.grad.data_ptr()}))
    scores = saliency_scores(module, losses_of(module))
    assert {name: score.data_ptr() for name, score in scores.items()} == places


def test_module_is_put_back() -> None:
    module = network().train()
    module[1].eval()
    module.get_parameter("0.weight").requires_grad_(False)
    module.get_parameter("4.bias").grad = earlier = torch.ones(4, dtype=torch.float64)
    statistics = module.get_buffer("1.running_mean").clone()
    saliency_scores(module, losses_of(module))
    assert module.training and module[4].training and not module[1].training
    assert [n for n, p in module.named_parameters() if not p.requires_grad] == ["0.weight"]
    assert module.get_parameter("4.bias").grad is earlier and earlier.tolist() == [1] * 4
    assert all(p.grad is None for n, p in module.named_parameters() if n != "4.bias")
    assert torch.equal(module.get_buffer("1.running_mean"), statistics)


def test_only_the_named_parameters_are_scored() -> None:
    module = network()
    scores = saliency_scores(module, losses_of(module), parameters={"4.weight"})
    assert list(scores) == ["4.weight"]
    torch.testing.assert_close(scores["4.weight"], reference_scores(network(), "gradient")["4.weight"])
    with pytest.raises(ValueError, match="None of the module's 6 parameters"):
        saliency_scores(module, losses_of(module), parameters={"no.such"})


def test_unused_parameters_score_zero_and_backward_is_called() -> None:
    module = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    calls: list[float] = []

    def backward(loss: Tensor) -> None:
        calls.append(loss.item())
        loss.backward()

    scores = saliency_scores(module, [lambda: module[0](torch.ones(1, 2)).sum()] * 2, backward=backward)
    assert len(calls) == 2
    assert not scores["1.weight"].any() and scores["0.weight"].tolist() == [[2, 2], [2, 2]]


def test_useless_gradients_are_refused() -> None:
    module = nn.Linear(2, 2)
    module.bias.grad = earlier = torch.ones(2)
    with pytest.raises(ValueError, match="'weight'.*not finite"):
        saliency_scores(module, [lambda: (module.weight * float("inf")).sum()])
    with pytest.raises(ValueError, match="Every gradient is zero"):
        saliency_scores(module, [lambda: module(torch.ones(1, 2)).sum() * 0])
    with pytest.raises(ValueError, match="Every gradient is zero"):
        saliency_scores(module, [])
    assert module.bias.grad is earlier and module.weight.grad is None


def sorted_choice(scores: dict[str, Tensor], k: int) -> Tensor:
    """A stable full sort of all scores as float64: ties keep their order."""
    flat = torch.cat([score.double().reshape(-1) for score in scores.values()])
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[torch.sort(flat, descending=True, stable=True).indices[:k]] = True
    return mask


def awkward_scores(dtypes: list[torch.dtype], seed: int) -> dict[str, Tensor]:
    """Many ties, zeros of both signs, denormals, infinity, and a channels-last, a scalar and an empty tensor."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(40, 7), (6, 5, 3, 3), (), (0, 3), (301,)]
    scores = {}
    for index, shape in enumerate(shapes):
        dtype = dtypes[index % len(dtypes)]
        values = torch.randn(shape, generator=generator, dtype=torch.float64).abs()
        coarse = torch.rand(shape, generator=generator)
        values = torch.where(coarse < 0.3, (values * 4).round() / 4, values)
        values = torch.where(coarse > 0.8, values * torch.finfo(dtype).tiny / 8, values)
        values = torch.where((coarse > 0.4) & (coarse < 0.5), -0.0, values)
        values = torch.where((coarse > 0.5) & (coarse < 0.51), float("inf"), values)
        scores[f"p{index}"] = values.to(dtype)
    scores["p1"] = scores["p1"].contiguous(memory_format=torch.channels_last)
    return scores


DTYPES = {
    "fp16": [torch.float16],
    "bf16": [torch.bfloat16],
    "fp32": [torch.float32],
    "fp64": [torch.float64],
    "halves": [torch.float16, torch.bfloat16],
    "bf16+fp32": [torch.bfloat16, torch.float32],
    "all": [torch.float64, torch.float16, torch.float32, torch.bfloat16],
}


@pytest.mark.parametrize("chunk", [2**22, 150])
@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("seed", range(2))
def test_top_k_equals_a_stable_sort(
    dtypes: list[torch.dtype], seed: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("erase.saliency.topk.CHUNK", chunk)
    scores = awkward_scores(dtypes, seed)
    n = sum(score.numel() for score in scores.values())
    flat = torch.cat([score.double().reshape(-1) for score in scores.values()])
    for k in [1, n // 3, n // 2, n - n // 5, n]:
        mask = torch.cat([mask.reshape(-1) for mask in top_k(scores, k).values()])
        assert torch.equal(mask, sorted_choice(scores, k)), k
        cut = kth_largest(scores, k)
        assert cut.value == flat.sort(descending=True).values[k - 1].item()
        assert cut.above == int((flat > cut.value).sum()) and cut.ties == int((flat == cut.value).sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_all_equal_scores_are_cut_by_position(dtype: torch.dtype) -> None:
    for value in (0.0, 0.3):
        masks = top_k({"b": torch.full((3, 2), value, dtype=dtype), "a": torch.full((4,), value, dtype=dtype)}, 8)
        assert masks["b"].all() and masks["a"].tolist() == [True, True, False, False]


def test_processes_that_sum_their_histograms_agree() -> None:
    scores = awkward_scores([torch.float32], 0)
    parts = [{n: s for n, s in scores.items() if (n == "p0") == first} for first in (True, False)]
    histograms: list[Tensor] = []
    for prefix_round in range(2):  # each process replays the rounds known so far to reach its next histogram
        own = []
        for part in parts:
            seen: list[Tensor] = []

            def reduce(counts: Tensor, seen: list[Tensor] = seen) -> Tensor:
                seen.append(counts.clone())
                return histograms[len(seen) - 1] if len(seen) <= len(histograms) else counts

            try:
                kth_largest(part, 100, reduce)
            except ValueError:
                assert len(seen) <= prefix_round + 1
            own.append(seen[prefix_round])
        histograms.append(own[0] + own[1])
    rounds = iter(histograms)
    assert kth_largest(parts[0], 100, lambda counts: next(rounds)) == kth_largest(scores, 100)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), -float("inf")])
def test_scores_that_do_not_rank_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="'b' has a smallest score"):
        kth_largest({"a": torch.ones(2), "b": torch.tensor([1.0, bad])}, 1)


def test_k_and_dtype_out_of_range_are_refused() -> None:
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"choose the {k} largest of 3"):
            kth_largest({"a": torch.ones(3)}, k)
    with pytest.raises(ValueError, match="largest of 0"):
        kth_largest({}, 1)
    with pytest.raises(ValueError, match="'a' is torch.int64"):
        kth_largest({"a": torch.ones(3, dtype=torch.int64)}, 1)


def mask_of(density: float = 0.3, seed: int = 0, **metadata: str) -> SaliencyMask:
    torch.manual_seed(seed)
    scores = {name: torch.rand(p.shape) for name, p in network().named_parameters()}
    return SaliencyMask.from_scores(scores, density=density, metadata=metadata)


def test_density_counts_within_the_scope() -> None:
    scores = {"attn.w": torch.rand(10, 10), "conv.w": torch.rand(300) + 1}
    mask = SaliencyMask.from_scores(scores, density=0.25, scope=lambda name: "attn" in name)
    assert mask.count == int(mask.tensors["attn.w"].sum()) == 25
    assert mask.density == 25 / 400 and mask.scope == {"attn.w"}
    assert SaliencyMask.from_scores(scores, density=1e-9).count == 1
    assert SaliencyMask.from_scores(scores, density=1).density == 1


def test_threshold_is_inclusive() -> None:
    mask = SaliencyMask.from_scores({"a": torch.tensor([0.5, 1.0, 2.0])}, threshold=1.0)
    assert mask.tensors["a"].tolist() == [False, True, True]


def test_unclear_requests_are_refused() -> None:
    scores = {"a": torch.rand(4)}
    for density, threshold in ((None, None), (0.5, 1.0)):
        with pytest.raises(ValueError, match="exactly one"):
            SaliencyMask.from_scores(scores, density=density, threshold=threshold)
    for density in (0.0, -1.0, 50.0, float("nan")):
        with pytest.raises(ValueError, match="share in"):
            SaliencyMask.from_scores(scores, density=density)
    with pytest.raises(ValueError, match="No parameter is in scope"):
        SaliencyMask.from_scores(scores, density=0.5, scope=lambda name: False)
    with pytest.raises(ValueError, match="lower the threshold"):
        SaliencyMask.from_scores(scores, threshold=2.0)


@pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 1.0])
def test_random_mask_has_the_same_count_and_scope(density: float) -> None:
    scores = {"in.a": torch.rand(50, 30), "out": torch.rand(500), "in.b": torch.rand(7)}
    like = SaliencyMask.from_scores(scores, density=density, scope=lambda name: name.startswith("in"))
    mask = like.shuffled(seed=3)
    assert mask.count == like.count and not mask.tensors["out"].any()
    again, other = like.shuffled(seed=3), like.shuffled(seed=4)
    assert torch.equal(mask.tensors["in.a"], again.tensors["in.a"])
    assert density == 1 or not torch.equal(mask.tensors["in.a"], other.tensors["in.a"])


def test_random_mask_in_a_scope_of_its_own() -> None:
    like = mask_of(density=0.05)
    mask = like.shuffled(seed=3, scope=lambda name: name == "4.weight")
    assert int(mask.tensors["4.weight"].sum()) == mask.count == like.count and mask.scope == {"4.weight"}
    with pytest.raises(ValueError, match="random weights among the 3 in scope"):
        like.shuffled(seed=3, scope=lambda name: name == "0.bias")


def test_a_random_mask_of_a_module_needs_no_scores() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    zeros = {name: torch.zeros(p.shape) for name, p in module.named_parameters()}
    for scope in (None, lambda name: name.endswith("weight")):
        mask = SaliencyMask.random(module, density=0.25, seed=3, scope=scope, metadata={"concept": "cat"})
        like = SaliencyMask.from_scores(zeros, density=0.25, scope=scope, metadata={"concept": "cat"})
        same = like.shuffled(seed=3)
        assert mask.metadata == same.metadata and mask.scope == like.scope
        assert all(torch.equal(mask.tensors[name], same.tensors[name]) for name in zeros)
    with pytest.raises(ValueError, match=r"share in \(0, 1\]"):
        SaliencyMask.random(module, density=50, seed=0)


def test_random_masks_are_uniform() -> None:
    like = SaliencyMask({"a": torch.tensor([True, True, True, False]), "b": torch.zeros(6, dtype=torch.bool)})
    draws = [torch.cat(list(like.shuffled(seed).tensors.values())).float() for seed in range(2000)]
    share = torch.stack(draws).mean(0)
    assert torch.all((share - 0.3).abs() < 0.05)  # 5 standard deviations of a mean of 2000


def test_file_takes_one_bit_a_weight_and_round_trips(tmp_path: Path) -> None:
    scores = {"a.weight": torch.rand(1000, 800), "a.bias": torch.rand(13), "scale": torch.rand(())}
    mask = SaliencyMask.from_scores(scores, density=0.5, metadata={"concept": "cat"}, scope=lambda n: n != "scale")
    mask.save(tmp_path / "mask.safetensors")
    assert (tmp_path / "mask.safetensors").stat().st_size < 800_013 / 8 + 1024
    loaded = SaliencyMask.load(tmp_path / "mask.safetensors")
    assert list(loaded.tensors) == list(mask.tensors) and loaded.metadata == mask.metadata
    assert all(torch.equal(loaded.tensors[name], mask.tensors[name]) for name in mask.tensors)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.safetensors"
    mask_of().save(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        SaliencyMask.load(path)
    atomic_save({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="is no saliency mask"):
        SaliencyMask.load(path)
    code = torch.ones(1, dtype=torch.uint8)
    atomic_save({"a": code}, path, {"format": "erase.mask/1", "shapes": '{"a": [8], "b": [8]}'})
    with pytest.raises(ValueError, match="describes 2 parameters and holds 1"):
        SaliencyMask.load(path)
    atomic_save({"a": code}, path, {"format": "erase.mask/1", "shapes": '{"a": [80]}'})
    with pytest.raises(ValueError, match="takes 10 bytes, got 1"):
        SaliencyMask.load(path)


def test_mask_for_another_model_is_refused() -> None:
    mask = mask_of(base_sha256="a" * 64)
    mask.check(network(), "a" * 64)
    mask.check(network())
    with pytest.raises(ValueError, match="SHA-256 aaaaaaaaaaaa"):
        mask.check(network(), "b" * 64)
    with pytest.raises(ValueError, match=r"'0.weight' is \(3, 2, 3, 3\) in the mask and absent in the module"):
        mask.check(nn.Sequential())
    with pytest.raises(ValueError, match=r"'5.weight' is absent in the mask and \(1, 4\) in the module"):
        mask.check(network().append(nn.Linear(4, 1)))
    wider = network()
    wider[4] = nn.Linear(12, 5)
    with pytest.raises(ValueError, match=r"another model: '4.weight' is \(4, 12\) in the mask and \(5, 12\)"):
        mask.check(wider)
    with pytest.raises(ValueError, match="selects no weight"):
        SaliencyMask({n: torch.zeros_like(m) for n, m in mask.tensors.items()}).check(network())


def test_full_covers_everything_and_covering_fills_in() -> None:
    full = SaliencyMask.full(network())
    full.check(network())
    assert full.density == 1
    part = SaliencyMask({"4.weight": full.tensors["4.weight"]})
    covering = part.covering(network())
    covering.check(network())
    assert covering.count == 48 and covering.scope == {"4.weight"}
    with pytest.raises(ValueError, match="'no.such'"):
        SaliencyMask({"no.such": torch.ones(1, dtype=torch.bool)}).covering(network())


def test_union_and_intersection() -> None:
    a, b = mask_of(seed=0, concept="cat", score="snip"), mask_of(seed=1, concept="dog", score="snip")
    union, both = a | b, a & b
    for name in a.tensors:
        assert torch.equal(union.tensors[name], a.tensors[name] | b.tensors[name])
        assert torch.equal(both.tensors[name], a.tensors[name] & b.tensors[name])
    assert union.count + both.count == a.count + b.count
    assert union.metadata == {"score": "snip", "concept": "cat, dog"}
    with pytest.raises(ValueError, match="another model"):
        a.__or__(SaliencyMask({"x": torch.ones(2, dtype=torch.bool)}))
    with pytest.raises(ValueError, match="SHA-256"):
        mask_of(base_sha256="a" * 64).__and__(mask_of(base_sha256="b" * 64))


def test_the_share_of_the_score_that_a_mask_holds() -> None:
    scores = {"a": torch.tensor([[8.0, 1.0], [0.0, 1.0]]), "b": torch.tensor([6.0, 4.0]), "c": torch.tensor([80.0])}
    mask = SaliencyMask.from_scores(scores, density=1 / 3, scope=lambda name: name != "c")
    assert mask.metadata["score_share"] == "0.7000"  # 8 and 6 of 20
    assert mask.table().endswith("The salient weights hold 70.0 % of the score.")
    zeros = {name: torch.zeros_like(score) for name, score in scores.items()}
    whole = [SaliencyMask.from_scores(kind, density=density) for kind, density in ((zeros, 0.5), (scores, 1.0))]
    for other in (mask.shuffled(seed=0), mask | mask, *whole):
        assert "score_share" not in other.metadata


def test_blocks_and_table(tmp_path: Path) -> None:
    ones, zeros = torch.ones(4, dtype=torch.bool), torch.zeros(12, dtype=torch.bool)
    mask = SaliencyMask({"down_blocks.0.conv": ones, "mid_block.attn1.q": zeros, "down_blocks.0.norm": zeros})
    assert mask.summary()[0] == LayerDensity("down_blocks.0.conv", 4, 4)
    assert mask.by_block() == [LayerDensity("down_blocks.0", 4, 16), LayerDensity("mid_block", 0, 12)]
    assert [row.split()[0] for row in mask.table().splitlines()] == ["block", "down_blocks.0", "mid_block", "all"]
    assert "25.000 %" in mask.table()
    mask.plot(tmp_path / "mask.png")
    assert [p.name for p in tmp_path.iterdir()] == ["mask.png"]
    assert (tmp_path / "mask.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("up_blocks.1.resnets.0.conv1.weight", "up_blocks.1"),
        ("transformer_blocks.3.attn.to_q.weight", "transformer_blocks.3"),
        ("mid_block.attentions.0.norm.weight", "mid_block"),
        ("conv_in.weight", "conv_in"),
        ("scale", "scale"),
    ],
)
def test_block_names(name: str, block: str) -> None:
    assert block_of(name) == block
