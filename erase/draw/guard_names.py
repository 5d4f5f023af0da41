"""Guards by name, for whoever only asks whether there is one: the guards themselves need torch."""

from typing import TYPE_CHECKING, Literal

from ..methods import METHODS
from ..suggest import did_you_mean

GUARDS: tuple[str, ...] = tuple(guard for method in METHODS.values() for guard in method.guards)
"""Guards by name; `guards.GUARDS` has their settings."""
if TYPE_CHECKING:
    GuardName = str
else:
    GuardName = Literal[GUARDS]  # the parser of flags reads the names from the type
"""A name in `GUARDS`."""


def check_guard(name: str | None, words: str | None) -> None:
    """ValueError for an unknown guard, one without words, or words without a guard."""
    if name is None and words is not None:
        raise ValueError(f"--guard_concept {words!r} needs a --guard: {', '.join(GUARDS)}.")
    if name is None:
        return
    if name not in GUARDS:
        hint = did_you_mean(name, GUARDS, n=2, quoted=True)
        raise ValueError(f"Unknown guard {name!r}.{hint} There are {', '.join(GUARDS)}.")
    if words is None or not words.strip(" ,"):
        raise ValueError(f'The guard {name!r} needs the concept in words, got {words!r}: --guard_concept "a cat".')
