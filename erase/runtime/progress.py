"""Progress that moves with time: bars that count parts of a picture; libraries keep their own bars to themselves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"
"""tqdm's own with whole pictures: a bar that moves in parts of one would show them."""

OnStep = Callable[[float], None]
"""Told after each denoising step which share (0–1) of its batch is done."""


def picture_bar(total: int, what: str, *, shown: bool, unit: str = "picture") -> Any:
    """A bar over pictures or rows that may be moved by parts of one."""
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=what, unit=unit, disable=not (shown and total), bar_format=FORMAT)


class BatchProgress:
    """Moves a bar while a batch of `count` pictures is being made, and to its end when `finish` is called."""

    def __init__(self, bar: Any, count: int):
        self.bar, self.count, self.done = bar, count, 0.0

    def __call__(self, share: float) -> None:
        """`share` of the batch's steps are done."""
        self._to(min(share, 1.0) * self.count)

    def finish(self) -> None:
        """The batch is whole, whether it was made or found."""
        self._to(self.count)

    def _to(self, done: float) -> None:
        self.bar.update(max(0.0, done - self.done))
        self.done = max(self.done, done)


def step_callback(on_step: OnStep | None, then: Callable[..., dict[str, Any]] | None = None) -> dict[str, Any]:
    """`callback_on_step_end` of a diffusers pipeline's call that reports to `on_step` and then does `then`."""
    if on_step is None and then is None:
        return {}

    def callback(pipe: Any, step: int, t: Any, state: dict[str, Any]) -> dict[str, Any]:
        if on_step:
            on_step((step + 1) / len(pipe.scheduler.timesteps))
        return then(pipe, step, t, state) if then else {}

    return {"callback_on_step_end": callback}


@contextmanager
def quiet_loading() -> Iterator[None]:
    """While models are read from the disk, the bars of diffusers and transformers stay away; downloads keep theirs."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [library for library in (of_diffusers, of_transformers) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
