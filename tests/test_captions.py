"""Contract of erase.data.captions: a picture of one's own is trained with its own prompt, or the run is refused.

Prompts come from text files, metadata as ImageFolder has it, or one for all; never from the order of the files. All of
it is decided before a model is loaded.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from drawing import TinyFolder
from erase import EraseConfig, erase
from erase.concepts.concept import Concept
from erase.data.captions import check_data_dirs, concept_pictures, data_hash, read_captions, retained_pictures
from erase.data.pictures import read_picture
from erase.data.training_data import build_training_data
from erase.models.loading import load_denoiser

RETAINED = ("apple", "car", "dog", "house", "tree")
CAT = Concept(
    name="cat",
    type="object",
    forget=("a photo of a cat",),
    anchor=("a photo of a dog",),
    retain=tuple(f"a photo of a {name}" for name in ("apple", "car", "house", "tree")),
    evaluate=("a cat",),
)
TWO_PAIRS = Concept(
    name="cat",
    type="object",
    forget=("a photo of a cat", "a drawing of a cat"),
    anchor=("a photo of a dog", "a drawing of a dog"),
    retain=("a photo of a car",),
    evaluate=("a cat",),
)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """A picture of its own grey for each retained thing, named by it."""
    (tmp_path / "album").mkdir()
    for at, name in enumerate(RETAINED):
        Image.new("RGB", (16, 16), (50 * at,) * 3).save(tmp_path / "album" / f"{name}.png")
    return tmp_path / "album"


def config(**changes: Any) -> EraseConfig:
    return EraseConfig(concept=("cat.yaml",), **changes)


def write_texts(album: Path) -> None:
    for name in RETAINED:
        (album / f"{name}.txt").write_text(f"a photo of a {name}\n")


def write_jsonl(album: Path) -> None:
    rows = [{"file_name": f"{name}.png", "text": f"a photo of a {name}"} for name in reversed(RETAINED)]
    (album / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_csv(album: Path) -> None:
    lines = [f'./{name}.png,1,"a photo of a {name}"' for name in reversed(RETAINED)]
    (album / "metadata.csv").write_text("\n".join(["file_name,label,caption", *lines]) + "\n")


# Conventions


@pytest.mark.parametrize("write", [write_texts, write_jsonl, write_csv])
def test_each_picture_has_its_own_prompt(album: Path, write: Callable[[Path], None]) -> None:
    write(album)
    found = retained_pictures([CAT], config(retain_data_dir=album))
    assert [(p.path.stem, p.prompt, p.anchor) for p in found] == [
        (name, f"a photo of a {name}", f"a photo of a {name}") for name in RETAINED
    ]


def test_metadata_name_files_from_where_they_are(album: Path) -> None:
    (album / "more").mkdir()
    (album / "apple.png").rename(album / "more" / "apple.png")
    write_csv(album)
    text = (album / "metadata.csv").read_text()
    (album / "metadata.csv").write_text(text.replace("./apple.png", "more/apple.png"))
    assert read_captions(album)[album / "more" / "apple.png"] == "a photo of a apple"
    lines = text.splitlines()
    (album / "metadata.csv").write_text("\n".join(line for line in lines if "apple" not in line))
    (album / "more" / "metadata.csv").write_text("\n".join(line for line in lines if "apple" in line or "file" in line))
    assert len(read_captions(album)) == len(RETAINED)


def test_one_prompt_for_all(album: Path) -> None:
    found = retained_pictures([CAT], config(retain_data_dir=album, retain_data_prompt="a photo"))
    assert {picture.prompt for picture in found} == {"a photo"} and len(found) == len(RETAINED)
    found = concept_pictures([CAT], config(concept_data_dir=album))  # it has one forget prompt
    assert {(p.prompt, p.anchor) for p in found} == {("a photo of a cat", "a photo of a dog")}
    prompt = "a drawing of a cat"
    found = concept_pictures([TWO_PAIRS], config(concept_data_dir=album, concept_data_prompt=prompt))
    assert {(p.prompt, p.anchor) for p in found} == {(prompt, "a drawing of a dog")}


def test_a_forget_prompt_with_several_anchors_takes_them_in_turn(album: Path) -> None:
    concept = Concept(name="cat", type="object", forget=("a cat", "a cat"), anchor=("a dog", "a fox"),
                      retain=("a car",), evaluate=("a cat",))  # fmt: skip
    found = concept_pictures([concept], config(concept_data_dir=album))
    assert [picture.anchor for picture in found] == ["a dog", "a fox", "a dog", "a fox", "a dog"]


def test_a_free_caption_is_anchored_where_all_anchors_are_one(album: Path) -> None:
    for name in RETAINED:
        (album / f"{name}.txt").write_text(f"a cat beside a {name}")
    found = concept_pictures([CAT], config(concept_data_dir=album))
    assert {p.anchor for p in found} == {"a photo of a dog"} and found[0].prompt == "a cat beside a apple"
    with pytest.raises(ValueError, match=r"'a cat beside a apple' of .*apple\.png has no anchor.*2 different anchors"):
        concept_pictures([TWO_PAIRS], config(concept_data_dir=album))


def test_a_run_is_another_with_other_pictures_or_captions(album: Path) -> None:
    write_texts(album)
    run = config(retain_data_dir=album)
    assert data_hash([CAT], config()) is None
    found = [data_hash([CAT], run)]
    (album / "car.txt").write_text("a photo of a red car")
    found.append(data_hash([CAT], run))
    Image.new("RGB", (16, 16), "red").save(album / "car.png")
    found.append(data_hash([CAT], run))
    assert len(set(found)) == 3 and found[2] == data_hash([CAT], run)


# Refusals


def refused(album: Path, match: str, concept: Concept = CAT, **changes: Any) -> None:
    with pytest.raises(ValueError, match=match):
        check_data_dirs([concept], config(**({"retain_data_dir": album} | changes)))


def test_pictures_without_captions_are_refused(album: Path) -> None:
    refused(album, r"5 pictures in .* have no captions.*apple\.txt beside apple\.png.*--retain_data_prompt")
    refused(album, r"--concept_data_prompt", TWO_PAIRS, retain_data_dir=None, concept_data_dir=album)
    (album / "metadata.csv").write_text("file_name,label\napple.png,1\n")  # of another kind: no captions
    refused(album, "have no captions")


def test_half_a_set_of_captions_is_refused(album: Path) -> None:
    write_texts(album)
    (album / "car.txt").unlink()
    (album / "dog.txt").write_text(" \n")
    refused(album, r"2 of 5 pictures in .* have no caption while others have one \('car.png', 'dog.png'\)")


def test_two_conventions_at_once_are_refused(album: Path) -> None:
    write_jsonl(album)
    refused(album, "leave one of them out", retain_data_prompt="a photo")
    write_csv(album)
    refused(album, r"the metadata caption \w+\.png more than once")
    (album / "metadata.csv").unlink()
    write_texts(album)
    refused(album, r"text files \(apple\.txt\) and in metadata\.jsonl")


def test_metadata_that_do_not_fit_are_refused(album: Path) -> None:
    write_jsonl(album)
    with (album / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "pear.png", "text": "a pear"}\n')
    refused(album, r"metadata\.jsonl, row 6 names 'pear\.png', which is no picture")
    (album / "metadata.jsonl").unlink()
    write_csv(album)
    text = (album / "metadata.csv").read_text()
    (album / "metadata.csv").write_text(text.replace("label", "text"))
    refused(album, r"columns file_name, text, caption; expected file_name and one of")
    (album / "metadata.csv").write_text(text.replace("file_name", "file"))
    refused(album, r"columns file, label, caption; expected file_name")


def test_captions_of_several_lines_or_another_encoding_are_refused(album: Path) -> None:
    write_texts(album)
    (album / "car.txt").write_text("a car\na house\n")
    refused(album, r"car\.txt holds 2 lines")
    (album / "car.txt").write_bytes("ein grünes Auto".encode("latin-1"))
    refused(album, r"car\.txt is not UTF-8")


def test_what_is_erased_is_not_retained_and_the_other_way_round(album: Path) -> None:
    write_texts(album)
    (album / "car.txt").write_text("two cats in a car")
    refused(album, r"'two cats in a car' of .*car\.png names 'cat', which is being erased")
    write_texts(album)
    refused(album, r"not forgotten", retain_data_dir=None, concept_data_dir=album)  # the dog's is the anchor


def test_a_prompt_without_pictures_and_an_output_among_them_are_refused(album: Path) -> None:
    refused(album, "retain_data_prompt 'a' is for the pictures of --retain_data_dir", retain_data_dir=None,
            retain_data_prompt="a")  # fmt: skip
    refused(album, "lies inside --retain_data_dir", retain_data_prompt="a photo", output_dir=album / "erased")


def test_no_model_and_no_torch_is_needed_to_refuse(album: Path, tmp_path: Path) -> None:
    code = "import sys, erase.data.captions; print('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    with pytest.raises(ValueError, match="have no captions"):
        erase(EraseConfig(concept=("imagenette/church",), pretrained_model_name_or_path=str(tmp_path / "absent"),
                          output_dir=tmp_path / "out", retain_data_dir=album))  # fmt: skip
    assert not (tmp_path / "out").exists()


# Training data


@pytest.mark.parametrize("method", ["salun", "forget-me-not"])
def test_the_apple_is_trained_with_the_apples_prompt(
    method: str, album: Path, tiny: TinyFolder, tmp_path: Path
) -> None:
    write_texts(album)
    (album / "dog.txt").write_text("a photo of a dog in a park")  # in none of the concept's prompts
    forgotten = tmp_path / "cats"
    forgotten.mkdir()
    for at in range(2):
        Image.new("RGB", (16, 16), (255, 40 * at, 0)).save(forgotten / f"{at}.png")
    settings = {"alpha": 1.0, "retain_data_dir": album, "concept_data_dir": forgotten, "method": method}
    denoiser = load_denoiser(str(tiny("sd1")))
    run = config(**settings, output_dir=tmp_path, data_cache_dir=tmp_path / "cache", forget_x="pictures")
    data = build_training_data(denoiser, [CAT], run, "base", Accelerator(cpu=True))

    assert data.retain is not None and data.concept is not None
    texts = [*(f"a photo of a {name}" for name in ("apple", "car")), "a photo of a dog in a park",
             *(f"a photo of a {name}" for name in ("house", "tree"))]  # fmt: skip
    pictures = [read_picture(album / f"{name}.png") for name in RETAINED]
    torch.testing.assert_close(data.retain.latents, denoiser.encode_images(np.stack(pictures)).cpu())
    for row, text in zip(data.retain.prompts, texts, strict=True):
        expected = denoiser.encode([text])
        for key, value in data.prompt(row[None], torch.device("cpu")).items():
            torch.testing.assert_close(value, expected[key].cpu(), rtol=1e-4, atol=1e-5)
    assert torch.equal(data.retain.prompts, data.retain.anchors)
    assert len(data.concept.latents) == 2 and (data.concept.prompts != data.concept.anchors).all()
