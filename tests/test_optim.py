"""Contract: salient weights move as under torch's AdamW, every other weight keeps its bits, and a resumed run is exact.

Bit-equality holds under decay, momentum and resume, for dense and sparse masks, float32, float64, bfloat16 and
channels-last weights. The proximal step equals its definition and returns base bits where a change vanishes.
"""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from erase.trained.optim import MaskedAdamW, clip_grad_norm, proximal_quantile, proximal_step

SETTINGS = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
DENSITIES = [0.01, 0.3, 1.0]


def network(dtype: torch.dtype = torch.float32, channels_last: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(32, 20)).to(dtype)
    if channels_last:
        kernel = module.get_parameter("0.weight")
        kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
    return module


def masks_of(module: nn.Module, density: float, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = {name: torch.rand(p.shape, generator=generator) < density for name, p in module.named_parameters()}
    masks["3.weight"][0, 0] = True
    masks["1.bias"].fill_(density == 1)
    return masks


def train(module: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        data = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        module(data.to(next(module.parameters()).dtype)).square().mean().backward()
        optimizer.step()


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


class Replay:
    """Gives torch's AdamW and ours the same gradients: the two trajectories must not feed back into them."""

    def __init__(self, module: nn.Module) -> None:
        self.gradients = [
            {
                n: torch.randn(p.shape, generator=torch.Generator().manual_seed(s)).to(p)
                for n, p in module.named_parameters()
            }
            for s in range(6)
        ]

    def run(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        for gradients in self.gradients:
            for name, parameter in module.named_parameters():
                parameter.grad = gradients[name].clone() if parameter.requires_grad else None
            optimizer.step()
        return weights(module)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_adamw_inside_the_mask_and_the_base_outside(
    density: float, dtype: torch.dtype, channels_last: bool
) -> None:
    module, reference = network(dtype, channels_last), network(dtype)
    base, masks, replay = weights(module), masks_of(module, density), Replay(module)
    ours = replay.run(module, MaskedAdamW(module.named_parameters(), masks, **SETTINGS))
    theirs = replay.run(reference, torch.optim.AdamW(reference.parameters(), **SETTINGS))
    for name, mask in masks.items():
        torch.testing.assert_close(ours[name][mask], theirs[name][mask], rtol=1e-5, atol=1e-6)
        assert torch.equal(ours[name][~mask], base[name][~mask])
        assert not mask.any() or not torch.equal(ours[name][mask], base[name][mask])


@pytest.mark.parametrize("channels_last", [False, True])
def test_no_mask_is_plain_adamw(channels_last: bool) -> None:
    module, reference = network(channels_last=channels_last), network()
    replay = Replay(reference)
    ours = replay.run(module, MaskedAdamW(module.named_parameters(), None, **SETTINGS))
    theirs = replay.run(reference, torch.optim.AdamW(reference.parameters(), **SETTINGS))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("density", DENSITIES)
def test_state_is_float32_and_only_of_salient_weights(density: float) -> None:
    module = network(torch.bfloat16)
    base, masks = weights(module), masks_of(module, density)
    optimizer = MaskedAdamW(module.named_parameters(), masks, **SETTINGS)
    train(module, optimizer, 0, 3)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter.detach()[~masks[name]], base[name][~masks[name]])
        state = optimizer.state.get(parameter, {})
        assert parameter.requires_grad == bool(masks[name].any()) == bool(state)
        for key in ("exp_avg", "exp_avg_sq") if state else ():
            assert state[key].dtype == torch.float32 and state[key].numel() == int(masks[name].sum())
    assert [p for group in optimizer.param_groups for p in group["params"]] == [
        p for name, p in module.named_parameters() if masks[name].any()
    ]


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_is_bit_exact(density: float, dtype: torch.dtype, tmp_path: Path) -> None:
    whole, halves = network(dtype), network(dtype)
    base, masks = weights(whole), masks_of(whole, density)
    train(whole, MaskedAdamW(whole.named_parameters(), masks, **SETTINGS), 0, 6)

    first = MaskedAdamW(halves.named_parameters(), masks, **SETTINGS)
    train(halves, first, 0, 3)
    torch.save({"model": halves.state_dict(), "optimizer": first.state_dict()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt")
    resumed = network(dtype)
    resumed.load_state_dict(saved["model"])
    second = MaskedAdamW(resumed.named_parameters(), masks, **{**SETTINGS, "lr": 1.0})
    second.load_state_dict(saved["optimizer"])
    train(resumed, second, 3, 6)

    for name, expected in weights(whole).items():
        assert torch.equal(weights(resumed)[name], expected)
        assert torch.equal(expected[~masks[name]], base[name][~masks[name]])


def test_state_of_another_mask_is_refused() -> None:
    module = network()
    first = MaskedAdamW(module.named_parameters(), masks_of(module, 0.3), **SETTINGS)
    other = MaskedAdamW(module.named_parameters(), masks_of(module, 0.3, seed=2), **SETTINGS)
    with pytest.raises(ValueError, match="another mask"):
        other.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="another mask"):
        MaskedAdamW(module.named_parameters(), None).load_state_dict(
            torch.optim.AdamW(module.parameters()).state_dict()
        )


def test_works_under_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    module, reference = network(), network()
    masks = masks_of(module, 0.3)
    prepared, optimizer = accelerator.prepare(module, MaskedAdamW(module.named_parameters(), masks, **SETTINGS))
    train(prepared, optimizer, 0, 2)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(prepared, optimizer, 2, 4)
    train(reference, MaskedAdamW(reference.named_parameters(), masks, **SETTINGS), 0, 4)
    assert all(torch.equal(value, weights(reference)[name]) for name, value in weights(module).items())


def test_masks_that_do_not_fit_are_refused() -> None:
    module = network()
    masks = masks_of(module, 0.3)
    with pytest.raises(ValueError, match="'0.weight' is absent"):
        MaskedAdamW(module.named_parameters(), {n: m for n, m in masks.items() if n != "0.weight"})
    with pytest.raises(ValueError, match=r"'0.bias' is \(3,\), expected \(8,\)"):
        MaskedAdamW(module.named_parameters(), {**masks, "0.bias": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(ValueError, match="'no.such', which is not among the 6"):
        MaskedAdamW(module.named_parameters(), {**masks, "no.such": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(ValueError, match="None of the 6 parameters has a salient weight"):
        MaskedAdamW(module.named_parameters(), {n: torch.zeros_like(m) for n, m in masks.items()})
    with pytest.raises(ValueError, match="lr=-1"):
        MaskedAdamW(module.named_parameters(), masks, lr=-1)


def test_clipping_counts_salient_gradients_only() -> None:
    module = network()
    masks = masks_of(module, 0.3)
    with pytest.raises(ValueError, match="call backward first"):
        clip_grad_norm(module.named_parameters(), masks, 1.0)
    module(torch.ones(1, 3, 4, 4)).square().sum().backward()
    before = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    expected = torch.cat([before[name][mask] for name, mask in masks.items()]).norm()
    norm = clip_grad_norm(module.named_parameters(), masks, expected.item() / 2)
    torch.testing.assert_close(norm, expected)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, before[name] / 2)
    clip_grad_norm(module.named_parameters(), masks, 1e9)
    torch.testing.assert_close(module[0].weight.grad, before["0.weight"] / 2)


def moved(base: dict[str, Tensor], seed: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: b + (0.1 * torch.randn(b.shape, generator=generator)).to(b) for n, b in base.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9, 1.0])
def test_proximal_step_equals_its_definition(dtype: torch.dtype, quantile: float) -> None:
    base = weights(network(dtype))
    parameters = moved(base)
    wide = torch.promote_types(dtype, torch.float32)
    change = {n: parameters[n].to(wide) - base[n].to(wide) for n in base}
    ordered = torch.cat([c.abs().reshape(-1) for c in change.values()]).sort().values
    expected_gamma = ordered[-int(-quantile * len(ordered) // 1) - 1].item()
    gamma = proximal_step(parameters, base, quantile)
    assert gamma == expected_gamma
    for name, delta in change.items():
        shrunk = delta.sign() * (delta.abs() - gamma).clamp(min=0)
        torch.testing.assert_close(parameters[name], (base[name].to(wide) + shrunk).to(dtype))
        gone = delta.abs() <= gamma
        assert torch.equal(parameters[name][gone], base[name][gone])
    assert sum(int((c.abs() <= gamma).sum()) for c in change.values()) >= quantile * len(ordered)


def test_proximal_step_at_quantile_zero_changes_nothing() -> None:
    base = weights(network())
    parameters = moved(base)
    before = {name: p.clone() for name, p in parameters.items()}
    assert proximal_step(parameters, base, 0.0) == 0.0
    assert all(torch.equal(parameters[name], before[name]) for name in before)
    with pytest.raises(ValueError, match="share in"):
        proximal_step(parameters, base, 1.5)


def test_proximal_step_leaves_the_rest_of_a_mask_alone() -> None:
    module = network()
    base, masks = weights(module), masks_of(module, 0.3)
    parameters = moved(base)
    before = {name: p.clone() for name, p in parameters.items()}
    gamma = proximal_step(parameters, base, 0.5, masks)
    inside = torch.cat([(before[n] - base[n]).abs()[m] for n, m in masks.items()])
    assert gamma == inside.sort().values[-(-len(inside) // 2) - 1].item()
    for name, mask in masks.items():
        assert torch.equal(parameters[name][~mask], before[name][~mask])
    assert any(not torch.equal(parameters[n], before[n]) for n in before)


def test_quantile_is_annealed_to_zero() -> None:
    assert [proximal_quantile(step, 4, 0.8) for step in (0, 2, 4)] == [0.8, 0.4, 0.0]
    for step, total in ((-1, 4), (5, 4), (0, 0)):
        with pytest.raises(ValueError, match="Expected 0 ≤ step"):
            proximal_quantile(step, total, 0.5)
