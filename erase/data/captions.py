"""Which prompt belongs to which picture of a folder, by the conventions of the ecosystem's data sets; torch-free.

A caption lies in a text file of the picture's name (`0.txt` beside `0.png`), or in `metadata.jsonl` or `metadata.csv`
as `datasets`' ImageFolder has it: `file_name`, relative to the metadata file, and `text`, `prompt` or `caption`. A
folder without captions needs one prompt for all of its pictures.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..concepts.concept import Concept
from ..concepts.wording import named, same
from ..config import EraseConfig
from ..files import file_sha256
from ..suggest import did_you_mean
from .pictures import is_hidden, list_pictures
from .tables import read_table

METADATA_FILES = ("metadata.jsonl", "metadata.csv")
CAPTION_COLUMNS = ("text", "prompt", "caption")
MOST_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class TrainingPicture:
    """A picture of one's own with what it is trained on."""

    path: Path
    """The file."""
    prompt: str
    """What it shows."""
    anchor: str
    """What the model shall draw for that prompt; the prompt itself where the picture is retained."""


def check_data_dirs(concepts: Sequence[Concept], config: EraseConfig) -> None:
    """ValueError, before any model is loaded, for folders of pictures whose prompts are not certain."""
    for role in ("concept", "retain"):
        folder, prompt = getattr(config, f"{role}_data_dir"), getattr(config, f"{role}_data_prompt")
        if folder is None and prompt is not None:
            raise ValueError(f"{role}_data_prompt {prompt!r} is for the pictures of --{role}_data_dir; give that too.")
        if folder is not None and config.output_dir.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"output_dir {config.output_dir} lies inside --{role}_data_dir {folder}, so the next run would train "
                "on the pictures of this one; choose another --output_dir."
            )
    if config.concept_data_dir is not None:
        concept_pictures(concepts, config)
    if config.retain_data_dir is not None:
        retained_pictures(concepts, config)


def data_hash(concepts: Sequence[Concept], config: EraseConfig) -> str | None:
    """sha256 over the bytes, prompts and anchors of the pictures in both folders; None without any."""
    own = concept_pictures(concepts, config) if config.concept_data_dir else []
    kept = retained_pictures(concepts, config) if config.retain_data_dir else []
    if not own and not kept:
        return None
    parts = [[(file_sha256(picture.path), picture.prompt, picture.anchor) for picture in part] for part in (own, kept)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def concept_pictures(concepts: Sequence[Concept], config: EraseConfig) -> list[TrainingPicture]:
    """The pictures of `concept_data_dir` with their forget prompts and anchors; ValueError where one has no anchor."""
    assert config.concept_data_dir is not None
    anchors, seen, made = _anchors(concepts), Counter[str](), []
    only = next(iter(anchors)) if len(anchors) == 1 else None
    captions = _captions(config.concept_data_dir, "concept", config.concept_data_prompt, only)
    retained = {prompt for concept in concepts for prompt in concept.retain}
    for path, prompt in captions.items():
        options = anchors.get(prompt) or _one_anchor(anchors, path, prompt)
        if prompt in retained or any(same(prompt, anchor) for anchor in options):
            raise ValueError(f"The caption {prompt!r} of {path} is one of the anchor's or the retained prompts, which "
                             "are not forgotten; mend the caption, or take the picture out.")  # fmt: skip
        made.append(TrainingPicture(path=path, prompt=prompt, anchor=options[seen[prompt] % len(options)]))
        seen[prompt] += 1
    return made


def _anchors(concepts: Sequence[Concept]) -> dict[str, list[str]]:
    """Forget prompt → its anchors, of which several pairs may give it several."""
    anchors: dict[str, list[str]] = {}
    for concept in concepts:
        for prompt, anchor in zip(concept.forget, concept.anchor):
            anchors.setdefault(prompt, []).append(anchor)
    return anchors


def _one_anchor(anchors: Mapping[str, list[str]], path: Path, prompt: str) -> list[str]:
    """The anchor of a caption that is no forget prompt: the one that all have."""
    distinct = {anchor for options in anchors.values() for anchor in options}
    if len(distinct) == 1:
        return list(distinct)
    hint = did_you_mean(prompt, anchors, n=1, quoted=True)
    raise ValueError(
        f"The caption {prompt!r} of {path} has no anchor: it is none of the forget prompts, and they have "
        f"{len(distinct)} different anchors.{hint} Write one of the forget prompts ({_some(list(anchors))}), or give "
        "the concept one anchor for all."
    )


def retained_pictures(concepts: Sequence[Concept], config: EraseConfig) -> list[TrainingPicture]:
    """The pictures of `retain_data_dir` with their captions, in any words; ValueError where one names the concept."""
    assert config.retain_data_dir is not None
    captions = _captions(config.retain_data_dir, "retain", config.retain_data_prompt)
    for path, prompt in captions.items():
        for concept in concepts:
            if (found := named((concept.name, *concept.forget), prompt)) is not None:
                raise ValueError(f"The caption {prompt!r} of {path} names {found!r}, which is being erased; mend the "
                                 "caption, or take the picture out of --retain_data_dir.")  # fmt: skip
    return [TrainingPicture(path=path, prompt=prompt, anchor=prompt) for path, prompt in captions.items()]


def _captions(folder: Path, role: str, given: str | None, only: str | None = None) -> dict[Path, str]:
    """Picture → prompt: the folder's captions, else one for all; ValueError when there are both or neither.

    given: what the user gave for all; only: the one prompt that there is.
    """
    captions = read_captions(folder)
    if captions and given is not None:
        raise ValueError(f"{folder} has captions, and --{role}_data_prompt gives one for all; leave one of them out.")
    if captions:
        return captions
    pictures, one_for_all = list_pictures(folder), given or only
    if one_for_all is None:
        raise ValueError(
            f"The {len(pictures)} pictures in {folder} have no captions, so nobody knows which prompt is whose. "
            f"Write each one's prompt into a text file of its name ({pictures[0].with_suffix('.txt').name} beside "
            f"{pictures[0].name}) or all of them into metadata.jsonl (file_name and text), or give one for all with "
            f"--{role}_data_prompt."
        )
    return dict.fromkeys(pictures, one_for_all)


def read_captions(folder: Path) -> dict[Path, str]:
    """Picture → caption, in the order of `list_pictures`; empty when the folder has no captions.

    ValueError when only some pictures have one, when text files and metadata are there at once, and for metadata that
    name missing pictures.
    """
    pictures = list_pictures(folder)
    texts = {path: text for path in pictures if (text := path.with_suffix(".txt")).is_file()}
    tables = [path for path in sorted(folder.rglob("*")) if path.name in METADATA_FILES]
    tables = [path for path in tables if path.is_file() and not is_hidden(path.relative_to(folder))]
    found = {path: _text_caption(text) for path, text in texts.items()}
    listed = [pair for table in tables for pair in _listed(table, pictures)]
    if found and listed:
        raise ValueError(
            f"{folder} has captions in text files ({next(iter(texts.values())).name}) and in {tables[0].name}; keep "
            "those of one kind."
        )
    if twice := [path for path, count in Counter(path for path, _ in listed).items() if count > 1]:
        raise ValueError(f"{folder}: the metadata caption {twice[0].relative_to(folder)} more than once; keep one row.")
    found = {path: caption for path, caption in (found or dict(listed)).items() if caption}
    if lacking := [path for path in pictures if found and path not in found]:
        raise ValueError(
            f"{len(lacking)} of {len(pictures)} pictures in {folder} have no caption while others have one "
            f"({_some([str(path.relative_to(folder)) for path in lacking])}); write theirs, or take them out."
        )
    return {path: found[path] for path in pictures} if found else {}


def _text_caption(path: Path) -> str:
    """The one line of a caption's file."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8.") from error
    if len(lines) > 1:
        raise ValueError(f"{path} holds {len(lines)} lines; a caption is one line.")
    return lines[0] if lines else ""


def _listed(table: Path, pictures: Sequence[Path]) -> list[tuple[Path, str]]:
    """Picture and caption of each row of a metadata file; nothing where it has no column of captions."""
    read, places = read_table(table), {os.path.normpath(path): path for path in pictures}
    columns = [column for column in CAPTION_COLUMNS if column in read.columns]
    if not columns:
        return []
    if len(columns) > 1 or "file_name" not in read.columns:
        raise ValueError(f"{table} has the columns {', '.join(read.columns)}; expected file_name and one of "
                         f"{', '.join(CAPTION_COLUMNS)}.")  # fmt: skip
    rows = []
    for number, row in enumerate(read.rows, 1):
        name = str(row.get("file_name") or "")
        path = places.get(os.path.normpath(table.parent / name))
        if path is None:
            raise ValueError(f"{table}, row {number} names {name!r}, which is no picture in {table.parent}; mend the "
                             "name, or remove the row.")  # fmt: skip
        rows.append((path, str(row.get(columns[0]) or "").strip()))
    return rows


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - MOST_SHOWN} more" if len(texts) > MOST_SHOWN else ""
    return ", ".join(map(repr, texts[:MOST_SHOWN])) + more
