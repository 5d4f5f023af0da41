"""A table's columns are what their names say, however they are spelled, and never what they only may be.

Case, blanks, `_` and `-` make no difference; a name that looks like a known one, or two columns for one field, is
refused together with the flag that settles it; what was read from where is one line. Lines of text and TSV are tables.
"""

import csv
from pathlib import Path
from typing import Any

import pytest

from erase.draw.generate import GenerateConfig
from erase.draw.prompts import PromptColumns, PromptFilter, PromptRow, load_prompts


def loaded(tmp_path: Path, content: str, name: str = "t.csv", **options: Any) -> list[PromptRow]:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    return load_prompts(tmp_path / name, **options)


@pytest.mark.parametrize(
    "header",
    [
        "prompt, seed, guidance_scale, num_inference_steps",
        "Prompt,Seed,Guidance Scale,Num Inference Steps",
        "PROMPT,Evaluation-Seed,evaluation guidance,num-inference-steps",
        "text ,sd seed,guidanceScale,numInferenceSteps",
        "\ufeffcaption,SD_Seed,SD Guidance-Scale,Num_inference_steps",
    ],
)
@pytest.mark.parametrize(("delimiter", "suffix"), [(",", "csv"), ("\t", "tsv")])
def test_spelling_makes_no_difference(header: str, delimiter: str, suffix: str, tmp_path: Path) -> None:
    content = f"{header}\na photo of a cat, 7, 3,20\na photo of a dog, 8, 3.5,30\n".replace(",", delimiter)
    rows = loaded(tmp_path, content, f"t.{suffix}")
    read = [(row.prompt, row.seed, row.guidance_scale, row.num_inference_steps, row.extra) for row in rows]
    assert read == [("a photo of a cat", 7, 3.0, 20, {}), ("a photo of a dog", 8, 3.5, 30, {})]


def test_names_that_flags_give_may_be_spelled_otherwise_too(tmp_path: Path) -> None:
    content = "Prompt,My-Seed,Nudity Percentage,Role\na,5,60,x\nb,6,40,y\n"
    columns = PromptColumns(seed="my_seed", extra=["role"])
    (row,) = loaded(tmp_path, content, columns=columns, filters=[PromptFilter.parse("nudity_percentage > 50")])
    assert (row.prompt, row.seed, row.extra) == ("a", 5, {"Role": "x"})
    with pytest.raises(ValueError, match="'Role' and 'ROLE'.*--extra_column must spell"):
        loaded(tmp_path, "prompt,Role,ROLE\na,1,2\n", columns=PromptColumns(extra=["role"]))
    assert loaded(tmp_path, "prompt,Role,ROLE\na,1,2\n", columns=PromptColumns(extra=["ROLE"]))[0].extra == {"ROLE": 2}


@pytest.mark.parametrize(
    ("column", "field"),
    [
        ("guidence_scale", "guidance_scale"), ("cfg", "guidance_scale"), ("cfg_scale", "guidance_scale"),
        ("cfgScale", "guidance_scale"), ("guidance", "guidance_scale"), ("seeds", "seed"), ("sede", "seed"),
        ("random seed", "seed"), ("evaluation_sed", "seed"), ("steps", "num_inference_steps"),
        ("step", "num_inference_steps"), ("num_inference_step", "num_inference_steps"), ("heigth", "height"),
        ("image_width", "width"), ("case_nubmer", "id"),
    ],
)  # fmt: skip
def test_a_column_that_looks_like_a_known_one_is_refused_with_the_flag(column: str, field: str, tmp_path: Path) -> None:
    content = f"prompt,{column}\na,16\n"
    with pytest.raises(ValueError) as refused:
        loaded(tmp_path, content)
    assert f"a column '{column}', which looks like {field}" in str(refused.value)
    assert f"--{field}_column '{column}', or --{field}_column none" in str(refused.value)
    sides: dict[str, Any] = {"height": {"width": 24}, "width": {"height": 24}}.get(field, {})
    (row,) = loaded(tmp_path, content, columns=PromptColumns(**{field: column}), **sides)
    assert getattr(row, field) == ("16" if field == "id" else 16) and row.extra == {}
    (row,) = loaded(tmp_path, content, columns=PromptColumns(**{field: "none"}))
    assert (row.seed, row.guidance_scale, row.num_inference_steps, row.height) == (0, 7.5, 50, None)
    assert row.extra == {column: 16}


@pytest.mark.parametrize(
    "column", ["weight", "prompt_id", "negative_prompt", "idx", "sd_model", "categories", "q16_percentage", "seedling"]
)
def test_other_columns_are_kept(column: str, tmp_path: Path) -> None:
    assert loaded(tmp_path, f"prompt,{column}\na,3\n")[0].extra == {column: 3}


def test_a_look_alike_of_a_field_that_has_its_column_is_kept(tmp_path: Path) -> None:
    (row,) = loaded(tmp_path, "prompt,seed,seeds,num_inference_steps,steps\na,5,6,20,30\n")
    assert (row.seed, row.num_inference_steps, row.extra) == (5, 20, {"seeds": 6, "steps": 30})


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("prompt,Seed,seed", "2 columns for seed: 'Seed' and 'seed'.*--seed_column 'Seed', or --seed_column none"),
        ("prompt,sd_seed,evaluation_seed", "2 columns for seed: 'evaluation_seed' and 'sd_seed'"),
        ("prompt,caption,seed", "2 columns for prompt: 'prompt' and 'caption'.*--prompt_column 'prompt' "),
        ("prompt,id,ID", "2 columns for id: 'id' and 'ID'"),
        ("prompt,seed, seed", "several columns named"),
    ],
)
def test_two_columns_for_one_field_are_refused(header: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        loaded(tmp_path, f"{header}\na,1,2\n")


def test_blanks_after_commas_are_no_part_of_quoted_cells(tmp_path: Path) -> None:
    rows = loaded(tmp_path, 'seed,prompt,note\n7, "a cat, asleep", x\n8, "a ""big"" dog",y\n')
    assert [(row.seed, row.prompt, row.extra) for row in rows] == [
        (7, "a cat, asleep", {"note": "x"}), (8, 'a "big" dog', {"note": "y"}),
    ]  # fmt: skip


def test_blanks_that_belong_to_a_text_stay(tmp_path: Path) -> None:
    prompts = [" a cat", "a cat ", '5" of "rain", he said']
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["seed", "prompt"], *enumerate(prompts)])
    assert [row.prompt for row in load_prompts(tmp_path / "t.csv")] == prompts
    assert loaded(tmp_path, 'seed, prompt\n1, " a cat"\n')[0].prompt == " a cat"


def test_lines_of_text_are_prompts_to_the_letter(tmp_path: Path) -> None:
    lines = '\ufeffa photo of a cat\r\n\n  \na "quoted", dog\u2028still the dog\n'
    rows = loaded(tmp_path, lines, "prompts.txt", seed=5)
    assert [(row.prompt, row.seed) for row in rows] == [
        ("a photo of a cat", 5), ('a "quoted", dog\u2028still the dog', 6),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="holds no rows"):
        loaded(tmp_path, "\n \n", "empty.txt")


@pytest.mark.parametrize("name", ["p.xlsx", "prompts", "p.csv.gz"])
def test_files_of_other_forms_are_refused_by_naming_those_that_are_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as refused:
        loaded(tmp_path, "prompt\na\n", name)
    assert ".csv, .tsv, .txt, .jsonl, .json, .parquet" in str(refused.value)
    assert "concept" not in str(refused.value) and "does not exist" not in str(refused.value)


@pytest.mark.parametrize("name", ["absent.xlsx", "folder/absent.ods", "/no/such/folder/p.xls"])
def test_absent_files_of_other_forms_are_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"ends in \.\w+ \(and does not exist\); prompts are read from \.csv"):
        load_prompts(name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "prompt;seed\na;1\n", "has semicolons between its cells, where commas were expected"),
        ("t.csv", "prompt\tseed\na\t1\n", "has tabs between its cells"),
        ("t.tsv", "prompt,seed\na,1\n", "has commas between its cells, where tabs were expected"),
        ("t.tsv", "prompt\tseed\na\tb\t1\n", "row 1 has 3 cells where the header has 2.*quote texts that contain tabs"),
        ("t.tsv", '"prompt\tseed\n', "is not TSV"),
    ],
)
def test_other_delimiters(name: str, content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        loaded(tmp_path, content, name)


def test_one_line_says_what_was_read(tmp_path: Path) -> None:
    said: list[str] = []
    content = "Prompt,sd_seed,role\na,1,x\nb,,y\nc,3,z\n"
    loaded(tmp_path, content, say=said.append, seed=10, max_prompts=2, guidance_scale=4)
    assert said == [
        f"Prompts: 2 of 3 rows of {tmp_path / 't.csv'}; columns: prompt from 'Prompt', seed from 'sd_seed' (missing in "
        "1 of 3 rows: the default there); defaults: num_inference_steps 50, guidance_scale 4, the model's own size, "
        "ids by row number; kept in the records: role."
    ]
    config = GenerateConfig(prompts=str(tmp_path / "t.csv"), seed_column="none", extra_column=("sd_seed",))
    config.rows(said.append)
    assert "columns: prompt from 'Prompt'; defaults" in said[1] and "seeds from 0 up" in said[1]
    assert said[1].endswith("kept in the records: sd_seed.")
