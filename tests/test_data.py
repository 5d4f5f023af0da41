"""Training data: made once, in whole batches, resumed without repeating, and never from a seed that is scored.

What another model, variant, scheduler, device or library would have made is never taken for it.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel

from drawing import TinyFolder
from erase import EraseConfig, SaliencyMask
from erase.data import store
from erase.data.store import Store
from erase.data.training_data import cycled, in_fixed_order, picture_seeds
from erase.draw.pipelines import ModelSource
from erase.evaluate.protocols import load_protocol, protocol_rows
from erase.files import folder_hash
from erase.run import build_only_mask
from erase.runtime.progress import OnStep
from erase.trained.trainer import positions


def opened(root: Path, **settings: object) -> Store:
    return Store(root, "base", Accelerator(cpu=True), "latents", settings)


class Maker:
    """Makes rows from their keys and remembers what it was asked for."""

    def __init__(self, keys: list[str], fail_at: int | None = None):
        self.keys, self.fail_at, self.batches = keys, fail_at, []

    def __call__(self, rows: list[int], on_step: OnStep) -> dict[str, torch.Tensor]:
        if self.fail_at == len(self.batches):
            raise KeyboardInterrupt
        self.batches.append(rows)
        return {"x": torch.tensor([[float(self.keys[row])] for row in rows])}


def test_rows_come_back_in_the_order_of_their_keys(tmp_path: Path) -> None:
    keys = ["5", "3", "9", "1", "7"]
    maker = Maker(keys)
    assert opened(tmp_path).fetch(keys, 2, maker)["x"].flatten().tolist() == [5, 3, 9, 1, 7]
    assert maker.batches == [[0, 1], [2, 3], [4]]
    again = Maker(["9", "5", "2"])
    assert opened(tmp_path).fetch(["9", "5", "2"], 2, again)["x"].flatten().tolist() == [9, 5, 2]
    assert again.batches == [[2]]


def test_interrupted_store_goes_on_with_the_same_batches(tmp_path: Path) -> None:
    keys = [str(i) for i in range(7)]
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path).fetch(keys, 2, Maker(keys, fail_at=2))
    rest = Maker(keys)
    assert opened(tmp_path).fetch(keys, 2, rest)["x"].flatten().tolist() == list(range(7))
    assert rest.batches == [[4, 5], [6]]


def test_other_settings_are_another_store(tmp_path: Path) -> None:
    assert opened(tmp_path, steps=25).folder != opened(tmp_path, steps=50).folder


def test_other_libraries_and_precisions_are_another_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(tmp_path)
    manifest = json.loads((first.folder / "manifest.json").read_text())
    assert manifest["device"] == "cpu" and set(manifest["packages"]) == {"torch", "diffusers", "transformers"}
    monkeypatch.setattr(store, "version", lambda name: "0")
    assert opened(tmp_path).folder != first.folder


@pytest.fixture
def two_variants(tiny: TinyFolder, tmp_path: Path) -> Path:
    """A model whose folder holds its weights as averaged and, as `non_ema`, as trained."""
    folder = tmp_path / "model"
    shutil.copytree(tiny("sd1"), folder)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.mul_(1.5)
    unet.save_pretrained(folder / "unet", variant="non_ema")
    return folder


def test_two_variants_share_neither_pictures_nor_masks(two_variants: Path, tmp_path: Path) -> None:
    masks, stores = {}, {}
    for variant in (None, "non_ema"):
        config = EraseConfig(
            concept=("imagenette/church",), pretrained_model_name_or_path=str(two_variants), variant=variant,
            output_dir=tmp_path / str(variant), data_cache_dir=tmp_path / "cache", num_concept_images=2,
            num_retain_images=2, data_num_inference_steps=1, alpha=0.0, mixed_precision="no",
        )  # fmt: skip
        before = set((tmp_path / "cache").glob("*"))
        masks[variant] = SaliencyMask.load(build_only_mask(config))
        stores[variant] = set((tmp_path / "cache").glob("*")) - before
        assert masks[variant].metadata["base_sha256"] == folder_hash(two_variants, variant)
        (manifest,) = [json.loads((f / "manifest.json").read_text()) for f in stores[variant] if "latents" in f.name]
        assert manifest["scheduler"]["_class_name"] == "DDIMScheduler" and not manifest["scheduler"]["clip_sample"]
    assert {len(found) for found in stores.values()} == {2}  # latents and prompts of each
    assert any((masks[None].tensors[name] != other).any() for name, other in masks["non_ema"].tensors.items())
    unet = UNet2DConditionModel.from_pretrained(two_variants / "unet")
    with pytest.raises(ValueError, match="mask for another model"):
        masks["non_ema"].check(unet, folder_hash(two_variants))
    sources = [ModelSource(pretrained_model_name_or_path=str(two_variants), variant=v) for v in (None, "non_ema")]
    assert len({source.sha256() for source in sources}) == 2
    assert sources[0].sha256() == folder_hash(two_variants)


def test_a_tampered_manifest_is_refused(tmp_path: Path) -> None:
    store = opened(tmp_path)
    (store.folder / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="not what its name says"):
        opened(tmp_path)


def test_training_seeds_differ_from_each_other_and_from_the_scored_ones() -> None:
    from erase import load_concepts

    concepts = load_concepts(["cat", "neon"], model="canvas")
    prompts = cycled([p for c in concepts for p in (*c.forget, *c.anchor, *c.retain)], 3000)
    seeds = picture_seeds(prompts, 0)
    scored = {row.seed for row in protocol_rows(load_protocol("canvas")[0], concepts=concepts)}
    assert len(set(seeds)) == len(seeds) and not scored & set(seeds)
    assert picture_seeds(prompts, 1) != seeds
    assert picture_seeds(prompts[:10], 0) == seeds[:10]


def test_fixed_order_is_shared_by_neighbouring_concepts() -> None:
    prompts = [f"a {word}" for word in "abcdefghij"]
    whole, fewer = in_fixed_order(prompts), in_fixed_order(prompts[1:])
    assert [p for p in whole if p != prompts[0]] == fewer and whole != prompts


@pytest.mark.parametrize("n", [5, 8])
def test_every_row_once_an_epoch_and_slices_agree(n: int) -> None:
    steps = [positions(step, 4, n, seed=3) for step in range(2 * n)]
    flat = torch.cat(steps).tolist()
    for epoch in range(len(flat) // n):
        assert sorted(flat[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert flat[:n] != flat[n : 2 * n]
