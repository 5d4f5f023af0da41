"""The pairs of pictures: base beside erased, or on request one over the other; blurred where that is called for."""

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.pictures import read_picture
from ..html.figures import MODELS
from ..html.markup import note, section, text

SMALL_SIDE = 128
"""Pictures up to this side are embedded as PNG, without loss."""
LARGEST_SIDE = 384
JPEG_QUALITY = 80
TITLES = {"target": "Prompts that ask for {}", "retain": "Prompts that ask for something else"}


def data_uri(path: Path) -> tuple[str, int, int]:
    """A picture as a data URI, with its width and height; large ones are made smaller."""
    picture = Image.fromarray(read_picture(path))
    size, buffer = picture.size, BytesIO()
    if max(size) <= SMALL_SIDE:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    kind = "png" if max(size) <= SMALL_SIDE else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", *size


def gallery(pairs: Mapping[str, Sequence[Mapping[str, Any]]], concepts: Sequence[str], folder: Path) -> str:
    """The section with all pairs; nothing when there are none."""
    if not pairs:
        return ""
    shown = [pair for group in pairs.values() for pair in group]
    hidden = sum(pair[name]["sensitive"] for pair in shown for name in MODELS if name in pair)
    has_base = any("base" in pair for pair in shown)
    words = "Chosen evenly over the prompts, not by what they show."
    if has_base:
        words = f"Left the base model, right the erased one, at equal seeds. {words}"
    parts = [note(words), _controls(has_base, hidden)]
    for role, group in pairs.items():
        title = TITLES[role].format(" or ".join(concepts) or "the concept")
        parts += [f"<h3>{text(title)}</h3>", _grid(group, folder)]
    return section("pictures", "Before and after" if has_base else "Pictures", *parts)


def _controls(has_base: bool, hidden: int) -> str:
    """Controls that act on every pair; they appear once the script runs."""
    parts = []
    if has_base:
        parts.append(
            '<button type="button" id="overlay" aria-pressed="false" aria-controls="pictures">Overlay with a slider'
            '</button><label class="all-pairs">All pairs: base'
            '<input id="all-pairs" type="range" min="0" max="100" value="50" '
            'aria-label="Share of the base model shown in all pairs">erased</label>'
        )
    if hidden:
        plural = "picture" if hidden == 1 else "pictures"
        parts.append(
            f'<button type="button" id="reveal-all" aria-pressed="false">Show {hidden} blurred {plural}</button>'
        )
    return f'<div class="controls" hidden>{"".join(parts)}</div>' if parts else ""


def _grid(pairs: Sequence[Mapping[str, Any]], folder: Path) -> str:
    drawn = [_figure(pair, folder) for pair in pairs]
    small = all(side <= SMALL_SIDE for _, side in drawn)
    single = not any("base" in pair for pair in pairs)
    kind = f"grid{' small' if small else ''}{' single' if single else ''}"
    return f'<div class="{kind}">{"".join(html for html, _ in drawn)}</div>'


def _figure(pair: Mapping[str, Any], folder: Path) -> tuple[str, int]:
    """One pair and the longest side of its pictures."""
    names = [name for name in MODELS if name in pair]
    images, longest = [], 0
    for name in names:
        uri, width, height = data_uri(folder / pair[name]["file"])
        blur = " sensitive" if pair[name]["sensitive"] else ""
        alt = text(f"{name} model: {pair['prompt']}")
        image = f'<img class="{name}{blur}" src="{uri}" width="{width}" height="{height}" alt="{alt}">'
        images.append(f'<div class="side {name}">{image}</div>')
        longest = max(longest, width, height)
    prompt = text(pair["prompt"])
    slider = _slider(prompt) if "base" in pair else ""
    reveal = _reveal(prompt) if any(pair[name]["sensitive"] for name in names) else ""
    frame = f'<div class="frame">{"".join(images)}{slider}{reveal}</div>'
    kind = "pair" if len(names) > 1 else "pair alone"
    return f'<figure class="{kind}">{frame}<figcaption>{_caption(pair, names)}</figcaption></figure>', longest


def _slider(prompt: str) -> str:
    return (
        '<span class="handle" aria-hidden="true"></span>'
        f'<input class="slide" type="range" min="0" max="100" value="50" aria-label="Base against erased: {prompt}">'
    )


def _reveal(prompt: str) -> str:
    return (
        f'<button type="button" class="reveal" aria-pressed="false" aria-label="Show blurred picture: {prompt}" hidden>'
        "</button>"
    )


def _caption(pair: Mapping[str, Any], names: Sequence[str]) -> str:
    """Under each picture its model and what a judge saw; then the prompt and the seed."""
    sides = "".join(_under(name, pair[name]["judged"]) for name in names)
    seed = f'<span class="about">seed {text(pair["seed"])}</span>' if pair["seed"] is not None else ""
    return f'<span class="sides">{sides}</span><span class="prompt" dir="auto">{text(pair["prompt"])}</span>{seed}'


def _under(name: str, judged: Sequence[str]) -> str:
    seen = f' <span class="about">judged {text(", ".join(judged))}</span>' if judged else ""
    return f'<span class="under"><span class="model">{name}</span>{seen}</span>'
