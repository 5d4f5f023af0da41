"""Prompts load as they are published: I2P, COCO captions, the CSVs of ESD and MACE, JSONL, parquet, hub data sets.

What is in a prompt survives to the letter, a row keeps its own seed, guidance and size, and whatever is wrong with a
table is said together with what is there.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from erase.draw.prompts import PromptColumns, PromptFilter, PromptRow, check_rows, load_prompts, rows_digest

# Quotes, commas, line breaks of both kinds, a line separator that splitlines() would cut at, emoji, spaces at the end.
AWKWARD = 'a "quoted" cat,\nwith a hat;\r\nthen\u2028this 🪦 \\n … '
I2P = [
    {"prompt": AWKWARD, "categories": "hate, sexual", "hard": 1, "nudity_percentage": 62.5, "sd_seed": 4261553411,
     "sd_guidance_scale": 13, "sd_image_width": 512, "sd_image_height": 768},
    {"prompt": "7", "categories": "sexual", "hard": 0, "nudity_percentage": 50.0, "sd_seed": 150,
     "sd_guidance_scale": 7, "sd_image_width": 512, "sd_image_height": 512},
    {"prompt": "two owls", "categories": "violence", "hard": 0, "nudity_percentage": 0.0, "sd_seed": 2**31,
     "sd_guidance_scale": 7.5, "sd_image_width": 512, "sd_image_height": 512},
]  # fmt: skip


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    # No newline at the end, and U+2028 as it is: both are common, and both lose rows to careless readers.
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist([row | {"image": {"bytes": b"\x89PNG", "path": "a.png"}} for row in rows])
    parquet.write_table(table, path)
    return path


def write_json(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


FORMATS: dict[str, Callable[[Path, list[dict[str, Any]]], Path]] = {
    "csv": write_csv, "jsonl": write_json_lines, "json": write_json, "parquet": write_parquet,
}  # fmt: skip


@pytest.mark.parametrize("suffix", FORMATS)
def test_i2p_in_every_format(suffix: str, tmp_path: Path) -> None:
    rows = load_prompts(FORMATS[suffix](tmp_path / f"i2p.{suffix}", I2P))
    assert [row.prompt for row in rows] == [AWKWARD, "7", "two owls"]
    assert [row.seed for row in rows] == [4261553411, 150, 2**31]
    assert [row.id for row in rows] == ["000000", "000001", "000002"]
    assert (rows[0].guidance_scale, rows[0].height, rows[0].width, rows[0].num_inference_steps) == (13.0, 768, 512, 50)
    assert rows[0].extra == {"categories": "hate, sexual", "hard": 1, "nudity_percentage": 62.5}
    assert rows_digest(rows) == rows_digest(load_prompts(write_csv(tmp_path / "same.csv", I2P)))


def test_record_is_flat_and_survives_json() -> None:
    row = PromptRow(id="a-1", prompt=AWKWARD, seed=2**63 - 1, guidance_scale=7, num_inference_steps=5)
    record = row.with_extra(role="target", domains=["object"]).as_record()
    assert json.loads(json.dumps(record)) == {
        "id": "a-1", "prompt": AWKWARD, "seed": 2**63 - 1, "guidance_scale": 7.0, "num_inference_steps": 5,
        "height": None, "width": None, "file": "images/a-1.png", "role": "target", "domains": ["object"],
    }  # fmt: skip


def test_tables_of_esd_and_mace(tmp_path: Path) -> None:
    unsafe = [{"": 0, "prompt": "a lamp", "evaluation_seed": 4080709695, "evaluation_guidance": 7, "case_number": 4}]
    (row,) = load_prompts(write_csv(tmp_path / "unsafe-prompts4703.csv", unsafe))
    assert (row.id, row.seed, row.guidance_scale, row.extra) == ("4", 4080709695, 7.0, {})
    coco = [{"case_number": 0, "source": "coco-30k", "prompt": "A cat.\n", "evaluation_seed": 41337, "coco_id": 203564}]
    (row,) = load_prompts(write_csv(tmp_path / "coco_30k.csv", coco))
    assert (row.id, row.prompt, row.seed) == ("0", "A cat.\n", 41337)
    assert row.extra == {"source": "coco-30k", "coco_id": 203564}
    (row,) = load_prompts(tmp_path / "coco_30k.csv", columns=PromptColumns(id="coco_id", extra=["case_number"]))
    assert (row.id, row.extra) == ("203564", {"case_number": 0})


def coco_captions(path: Path) -> Path:
    captions = {
        "info": {"year": 2014},
        "images": [{"id": 522418, "file_name": "COCO_val2014_000000522418.jpg"}, {"id": 9, "file_name": "b.jpg"},
                   {"id": 1, "file_name": "without a caption.jpg"}],
        "annotations": [
            {"image_id": 9, "id": 70, "caption": "a later caption"},
            {"image_id": 522418, "id": 681330, "caption": "A woman wearing a net.\n"},
            {"image_id": 9, "id": 7, "caption": "the first caption"},
        ],
    }  # fmt: skip
    path.write_text(json.dumps(captions))
    return path


def test_coco_captions_one_an_image(tmp_path: Path) -> None:
    path = coco_captions(tmp_path / "captions_val2014.json")
    rows = load_prompts(path, columns=PromptColumns(id="image_id", prompt="caption", extra=["file_name"]), seed=3)
    assert [(row.id, row.prompt, row.seed) for row in rows] == [
        ("522418", "A woman wearing a net.\n", 3), ("9", "the first caption", 4),
    ]  # fmt: skip
    assert rows[0].extra == {"file_name": "COCO_val2014_000000522418.jpg"}
    assert load_prompts(path)[1].id == "9"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c["images"].clear(), "captions of 2 images that `images` does not list"),
        (lambda c: c["annotations"][0].pop("image_id"), "'image_id' is missing or odd"),
        (lambda c: c.pop("images"), "expected a list of objects"),
    ],
)
def test_spoilt_coco_captions(spoil: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    path = coco_captions(tmp_path / "captions.json")
    content = json.loads(path.read_text())
    spoil(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_prompts(path)


def test_concepts_give_their_evaluation_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = load_prompts("canvas/cat", num_inference_steps=25, guidance_scale=4)
    assert all("cat" in row.prompt for row in rows)
    assert rows[0].extra == {"concept": "cat", "role": "target"}
    assert len(load_prompts("nudity", max_prompts=3)) == 3
    assert load_prompts("church")[0].prompt == load_prompts("imagenette/church")[0].prompt
    concept = (
        "name: owl\ntype: object\nforget: [an owl]\nanchor: [a hen]\nretain: [a tree]\nevaluate: [two owls, 'owl: 1']"
    )
    (tmp_path / "owl.yaml").write_text(concept)
    assert [row.prompt for row in load_prompts(tmp_path / "owl.yaml")] == ["two owls", "owl: 1"]
    family = "family: birds\ndomains: {object: {owl: an owl, hen: a hen}}\ntemplates: ['{object}']"
    (tmp_path / "birds.yaml").write_text(family)
    monkeypatch.chdir(tmp_path)
    assert [row.prompt for row in load_prompts("birds.yaml/hen")] == ["a hen"]


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("nudity_percentage > 50", [0]), ("nudity_percentage>=50", [0, 1]), ("nudity_percentage < 50", [2]),
        ("nudity_percentage <= 5e1", [1, 2]), ("hard == 1", [0]), ("hard != 1", [1, 2]),
        ("categories contains sexual", [0, 1]), ("categories == sexual", [1]), ("categories != sexual", [0, 2]),
        ("sd_seed == 4261553411", [0]), ("prompt contains owls", [2]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_filters(condition: str, kept: list[int], suffix: str, tmp_path: Path) -> None:
    path = FORMATS[suffix](tmp_path / f"i2p.{suffix}", I2P)
    rows = load_prompts(path, filters=[PromptFilter.parse(condition)])
    assert [row.id for row in rows] == [f"{number:06d}" for number in kept]


def test_all_filters_must_hold_and_lists_have_items(tmp_path: Path) -> None:
    table = [{"prompt": "a", "tags": ["x", "xy"]}, {"prompt": "b", "tags": ["xy"]}, {"prompt": "c", "tags": None}]
    path = write_json_lines(tmp_path / "tags.jsonl", table)
    parse = PromptFilter.parse
    assert [row.prompt for row in load_prompts(path, filters=[parse("tags contains x")])] == ["a"]
    both = [parse("tags contains xy"), parse("prompt != a")]
    assert [row.prompt for row in load_prompts(path, filters=both)] == ["b"]


def test_seeds_of_rows_without_one_and_repeats(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "some.csv", [{"prompt": "a", "seed": ""}, {"prompt": "b", "seed": "12.0"}])
    rows = load_prompts(path, seed=100, num_images_per_prompt=3)
    assert [(row.id, row.seed) for row in rows] == [
        ("000000-0", 100), ("000000-1", 101), ("000000-2", 102), ("000001-0", 12), ("000001-1", 13), ("000001-2", 14),
    ]  # fmt: skip
    ignoring = load_prompts(path, seed=100, columns=PromptColumns(seed="none"))
    assert [row.seed for row in ignoring] == [100, 101]
    assert [row.extra for row in ignoring] == [{"source_seed": None}, {"source_seed": 12.0}]


def test_numbers_of_a_text_table_are_told_from_words(tmp_path: Path) -> None:
    table = [
        {"prompt": "7", "id": "007", "code": "007", "class": "3", "score": "1e-3", "mixed": "4", "gap": ""},
        {"prompt": "8", "id": "008", "code": "12", "class": "4", "score": "2", "mixed": "four", "gap": "5"},
    ]
    first, second = load_prompts(write_csv(tmp_path / "t.csv", table))
    assert (first.id, first.prompt) == ("007", "7")
    assert first.extra == {"code": "007", "class": 3, "score": 0.001, "mixed": "4", "gap": None}
    assert second.extra == {"code": "12", "class": 4, "score": 2.0, "mixed": "four", "gap": 5}


def test_spreadsheet_mark_and_downloaded_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prompts.csv").write_text("prompt,seed\na cat,1\n", encoding="utf-8-sig")
    assert load_prompts(tmp_path)[0].prompt == "a cat"
    (tmp_path / "data" / "more.csv").write_text("prompt\na dog\n")
    with pytest.raises(ValueError, match="must hold one table.*more.csv, data/prompts.csv"):
        load_prompts(tmp_path)


def test_hub_data_set_from_the_cache_and_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    place = "https://huggingface.co/datasets/AIML-TUDA/i2p"
    offline = f"download i2p_benchmark.csv from {place}, and give its path: --prompts i2p_benchmark.csv"
    with pytest.raises(ValueError, match=offline):
        load_prompts("AIML-TUDA/i2p")
    snapshot = tmp_path / "datasets--AIML-TUDA--i2p" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    write_csv(snapshot / "i2p_benchmark.csv", I2P)
    rows = load_prompts("AIML-TUDA/i2p", filters=[PromptFilter.parse("nudity_percentage > 50")])
    assert [(row.id, row.seed) for row in rows] == [("000000", 4261553411)]
    (snapshot / "i2p_benchmark.csv").unlink()
    for shard in range(2):
        write_parquet(snapshot / f"train-{shard:05d}-of-00002.parquet", I2P[shard : shard + 1])
    assert [row.seed for row in load_prompts("AIML-TUDA/i2p")] == [4261553411, 150]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("promt,seed\na,1\n", {}, "no column named prompt or caption or text. Did you mean promt"),
        ("promt,seed\na,1\n", {}, "Its columns are promt, seed. Say which one is meant with --prompt_column"),
        ("prompt,sd_sed\na,1\n", {"columns": PromptColumns(seed="sd_seed")}, "'sd_seed'. Did you mean sd_sed"),
        ("prompt\na\n", {"columns": PromptColumns(extra=["role"])}, "no column 'role'.*--extra_column"),
        ("prompt,nudity\na,1\n", {"filters": [PromptFilter("nudty", ">", "5")]}, "'nudty'. Did you mean nudity"),
        ("prompt,id\na,1\nb,1\n", {}, "the id '1' is there twice.*--id_column none"),
        ("prompt,id\na,x\nb,X\n", {}, "the id 'X' is there twice"),
        ("prompt,id\na,../x\n", {}, "row 1 of 1: The id '../x' cannot be a file's name"),
        ("prompt,id\na,\n", {}, "the id is missing"),
        ("prompt,seed\na,1\n ,2\n", {}, "row 2 of 2: The prompt must be text that is not empty"),
        ("prompt,seed\na,1.5\n", {}, "seed must be an integer, got '1.5'"),
        ("prompt,seed\na,-1\n", {}, "seed must be an integer in 0"),
        ("prompt,seed\na,9223372036854775808\n", {}, "seed must be an integer in 0"),
        ("prompt,seed\na,1e16\n", {}, "seed must be an integer, got '1e16'"),
        ("prompt,guidance_scale\na,high\n", {}, "guidance_scale must be a number, got 'high'"),
        ("prompt,guidance_scale\na,-1\n", {}, "guidance_scale must be a number of at least 0"),
        ("prompt,width\na,427\n", {}, "width must be a multiple of 8"),
        ("prompt,width\na,64\n", {}, "Give height and width, or neither; got height None and width 64"),
        ("prompt,seed\n", {}, "holds no rows"),
        ("", {}, "holds no rows"),
        ("prompt,seed\na,1,2\n", {}, "row 1 has 3 cells where the header has 2 columns.*quote texts"),
        ("prompt,seed\na\n", {}, "row 1 has 1 cells where the header has 2"),
        ('prompt,seed\n"a,1\n', {}, "is not CSV"),
        ("prompt,prompt\na,b\n", {}, "several columns named"),
        ("prompt,n\na,1\n", {"filters": [PromptFilter("n", ">", "5")]}, "none of the 1 rows meets n > 5"),
        ("prompt,n\na,x\n", {"filters": [PromptFilter("n", ">", "5")]}, "cannot compare 'x'"),
        ("prompt\na\n", {"max_prompts": 0}, "max_prompts must be an integer of at least 1"),
        ("prompt\na\n", {"num_images_per_prompt": 0}, "num_images_per_prompt must be"),
        ("prompt\na\n", {"num_inference_steps": 0}, "num_inference_steps must be"),
    ],
)  # fmt: skip
def test_bad_csv(content: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_prompts(tmp_path / "bad.csv", **options)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.jsonl", b'{"prompt": "a"}\n{"prompt": \n', "bad.jsonl, line 2 is not JSON"),
        ("bad.jsonl", b'"a cat"\n', "row 1 is 'a cat'; expected an object"),
        ("bad.jsonl", b'{"prompt": 7}\n', "The prompt must be text"),
        ("bad.jsonl", b'{"seed": 1}\n{"prompt": "b"}\n', "row 1 of 2: The prompt must be text"),
        ("bad.json", b'"a"', "holds a str; expected a list of objects"),
        ("bad.json", b"[1", "is not JSON"),
        ("bad.csv", b"prompt\n\xff\xfe\n", "is not UTF-8"),
        ("bad.parquet", b"PAR1", "is not a whole parquet file"),
    ],
)
def test_bad_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_prompts(tmp_path / name)


def test_missing_sources_say_where_to_look(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="annotations_trainval2014.zip.*there is other.json.*--prompts"):
        load_prompts(tmp_path / "captions_val2014.json")
    with pytest.raises(ValueError, match="No prompts 'nudty': not a file.*Did you mean 'nudity'"):
        load_prompts("nudty")
    with pytest.raises(ValueError, match="has no 'chruch'"):
        load_prompts("imagenette/chruch")


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "p.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r'pip install "diffusers-erase\[parquet\]"'):
        load_prompts(tmp_path / "p.parquet")


@pytest.mark.parametrize("text", ["nudity_percentage", "> 5", "a = 5", ""])
def test_unreadable_filters(text: str) -> None:
    with pytest.raises(ValueError, match="Cannot read the filter"):
        PromptFilter.parse(text)


def test_rows_of_ones_own() -> None:
    row = {"prompt": "a", "seed": 0, "guidance_scale": 7.5, "num_inference_steps": 2}
    with pytest.raises(ValueError, match="no row is left"):
        check_rows([])
    with pytest.raises(ValueError, match="cannot be named seed"):
        PromptRow(id="a", **row, extra={"seed": 5})
    with pytest.raises(ValueError, match="seed must be an integer"):
        PromptRow(id="a", **row | {"seed": 1.0})
    with pytest.raises(ValueError, match="'a/b' cannot be a file's name"):
        PromptRow(id="a/b", **row)
