"""The settings of `erase compare`, and how the names in --methods become entries of the table."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from ..config import CANVAS, EraseConfig
from ..draw.guard_names import GUARDS
from ..methods import METHODS
from ..suggest import did_you_mean, meant

BASE = "base"
"""Label of the base model's own row."""
GUARD_SETTINGS = ("guard_concept",)
OURS = ("concept", "pretrained_model_name_or_path", "output_dir", "overwrite_output_dir", "seed", "method",
        "data_cache_dir", "resume_from_checkpoint", "proof", "num_target_images", "num_kept_images")  # fmt: skip
"""Settings of a run that the comparison gives itself, the same to all."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Erase one concept with several methods on the same seeds and prompts, and compare erasure, retention and cost.

    Example: erase compare --concept nudity --methods salun,esd-u,uce,sld-max --protocol i2p/sexual

    Try it:  erase compare --pretrained_model_name_or_path canvas --concept cat --methods salun,esd-x,uce,sld-medium
    """

    concept: str
    """What each method erases: a preset (nudity, imagenette/church, canvas/cat) or a YAML file."""
    methods: tyro.conf.UseAppendAction[tuple[str, ...]]
    """Methods of `erase train`, or negative-prompt, sld-medium, sld-strong, sld-max, safree; separate them by commas.
    With settings: salun:mask=random,density=0.5. With a label in the table: mine=salun:mask=random."""
    pretrained_model_name_or_path: str = "CompVis/stable-diffusion-v1-4"
    """Base model: a hub id, a local diffusers folder, or `canvas`, the small model that ships with this package."""
    config: str | None = None
    """A YAML file, as for `erase train --config`, with settings that override the defaults of every trained method."""
    output_dir: Path = Path("compare")
    """Folder for the runs, compare.json, compare.md and compare.html; repeating the command resumes the comparison."""
    overwrite_output_dir: bool = False
    """Repeat runs that --output_dir holds with other settings."""
    seeds: int = 3
    """Number of runs, each with its own seed, for methods that train; a closed form without randomness runs once."""
    seed: int = 0
    """Seed of the first run; each further run adds one."""
    processes: int = 1
    """Number of runs at once. They share the machine's cores and take its GPUs in turn, so their seconds can only be
    compared within one comparison."""

    protocol: str | None = None
    """Evaluate with this protocol of `erase evaluate` instead of the canvas's proof; required for other bases."""
    evaluate: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A flag of `erase evaluate` for --protocol, such as fid_reference=val2014. Repeat it for several flags."""
    num_target_images: int = 200
    """Minimum number of pictures of prompts that name the concept, in the canvas's proof."""
    num_kept_images: int = 500
    """Minimum number of pictures of other prompts, in the canvas's proof."""
    data_cache_dir: Path = Path("~/.cache/diffusers-erase")
    """Folder of shared pictures: those of the base model are generated once for all methods."""

    def __post_init__(self) -> None:
        for name in ("output_dir", "data_cache_dir"):
            object.__setattr__(self, name, Path(getattr(self, name)).expanduser())
        for name in ("seeds", "processes", "num_target_images", "num_kept_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.protocol is None and self.pretrained_model_name_or_path != CANVAS:
            raise ValueError(
                f"Only runs on the canvas are scored automatically, so runs on {self.pretrained_model_name_or_path} "
                "could not be compared. Choose a protocol of `erase evaluate` with --protocol, for example --protocol "
                "i2p/sexual, and pass its flags as --evaluate KEY=VALUE."
            )
        counts = {f.name: f.default for f in dataclasses.fields(self) if f.name.startswith("num_")}
        if self.protocol and any(getattr(self, name) != default for name, default in counts.items()):
            raise ValueError(
                f"{' and '.join(counts)} are the canvas's proof's; --protocol {self.protocol} has its own number of "
                "pictures. For fewer: --evaluate max_images=50."
            )
        if self.evaluate and self.protocol is None:
            raise ValueError("--evaluate gives flags to --protocol; without it the canvas's proof takes none.")
        parse_entries(self.methods)  # a wrong name is an error now, not after the first run
        for text in self.evaluate:
            if "=" not in text:
                raise ValueError(f"--evaluate takes KEY=VALUE, got {text!r}; for example --evaluate max_images=50.")

    @property
    def entries(self) -> "tuple[Entry, ...]":
        """The entries of --methods, in their order."""
        return parse_entries(self.methods)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the table: a method, or a method with settings of its own."""

    label: str
    """Its name in the table."""
    method: str
    """Name of the method."""
    settings: Mapping[str, str]
    """Flags on top of the method's defaults."""

    @property
    def kind(self) -> str:
        """trained, closed-form or inference."""
        return "inference" if self.method in GUARDS else METHODS[self.method].kind


def known_methods() -> tuple[str, ...]:
    """What --methods may name."""
    return (*(name for name, method in METHODS.items() if method.kind != "inference"), *GUARDS)


def parse_entries(texts: Sequence[str]) -> tuple[Entry, ...]:
    """Entries of comma-separated lists; ValueError for unknown names, unknown settings and equal labels."""
    entries = tuple(_entry(piece) for text in texts for piece in _pieces(text))
    if not entries:
        raise ValueError(f"No method to compare. --methods takes some of {', '.join(known_methods())}.")
    labels = [slug(entry.label) for entry in entries]
    for entry, name in zip(entries, labels):
        if name == BASE or labels.count(name) > 1:
            raise ValueError(
                f"The label {entry.label!r} is {'the base model' if name == BASE else 'another line'}'s already. "
                f"Labels must differ in letters or digits; choose one with LABEL={entry.method}."
            )
    return entries


def _pieces(text: str) -> list[str]:
    """Split at the commas between entries; `key=value` after an entry with settings is one more of its settings."""
    found: list[str] = []
    for piece in filter(None, map(str.strip, text.split(","))):
        is_setting = ":" not in piece and piece.partition("=")[0] in _setting_names() and "=" in piece
        if is_setting and found and ":" in found[-1]:
            found[-1] += f",{piece}"
        else:
            found.append(piece)
    return found


def _setting_names() -> list[str]:
    return [*(field.name for field in dataclasses.fields(EraseConfig)), *GUARD_SETTINGS]


def _entry(text: str) -> Entry:
    head, _, tail = text.partition(":")
    label, is_named, method = head.rpartition("=")
    if method not in known_methods():
        near = _near(method, known_methods()) or (f" {_near_setting(label)}" if is_named else "")
        raise ValueError(
            f"Unknown method {method!r} in {text!r}.{near or ' There are ' + ', '.join(known_methods()) + '.'}"
        )
    settings = dict(_setting(part, method) for part in tail.split(",") if part)
    if not (label or text).strip():
        raise ValueError(f"The entry {text!r} has no label; write LABEL={method}.")
    return Entry(label=label.strip() or text, method=method, settings=settings)


def _setting(text: str, method: str) -> tuple[str, str]:
    key, is_pair, value = (part.strip() for part in text.partition("="))
    allowed = GUARD_SETTINGS if method in GUARDS else [name for name in _setting_names() if name not in OURS]
    if not is_pair or key not in allowed:
        near = _near(key, allowed)
        why = " The comparison gives that one itself, the same to every method." if key in OURS else near
        takes = f" It takes {', '.join(GUARD_SETTINGS)}." if method in GUARDS else " See `erase train --help`."
        raise ValueError(f"{method} cannot be given {text!r}; settings are KEY=VALUE.{why or takes}")
    return key, value


def _near_setting(key: str) -> str:
    near = _near(key, _setting_names())
    return f"If {key!r} is meant as a setting:{near}" if near else ""


def _near(name: str, known: Sequence[str]) -> str:
    return meant(k for k in known if name and k.startswith(f"{name}-")) or did_you_mean(name, known)


def slug(label: str) -> str:
    """A label as a folder's name: lower case, one hyphen for everything that is no letter, digit or dot."""
    return "-".join("".join(c if c.isalnum() or c == "." else " " for c in label.lower()).split())
