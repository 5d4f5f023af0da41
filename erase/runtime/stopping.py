"""A job that is stopped: Ctrl-C, SIGTERM or a lack of memory become one line on what is kept and what to type."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

CTRL_C, TERMINATED = 130, 143
"""Exit statuses of a program that SIGINT or SIGTERM ended, as shells have them."""
_MEMORY_ERRORS = ("out of memory", "can't allocate memory", "not enough memory")


class Stopped(KeyboardInterrupt):
    """A job that somebody stopped, with what to tell them."""

    def __init__(self, text: str = "Stopped.", status: int = CTRL_C):
        super().__init__(text)
        self.status = status


class OutOfMemory(MemoryError):
    """Too little memory, with what is kept and what to do about it."""


@contextmanager
def explained(kept: Callable[[], str], smaller: str = "") -> Iterator[None]:
    """Tell whoever stops the block, or runs out of memory in it, what is kept and how to continue.

    kept: asked at that moment. smaller: what to change where memory does not suffice. Raises Stopped or OutOfMemory.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if isinstance(error, Stopped) and error.args[0] != Stopped().args[0]:
            raise
        raise Stopped(f"Stopped. {kept()}", getattr(error, "status", CTRL_C)) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"Out of memory: {str(error).splitlines()[0]}\n{smaller} {kept()}".strip()) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice: torch has several, for GPUs and for processors."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _MEMORY_ERRORS)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM, and the SIGHUP of a terminal that closes, stop the block as Ctrl-C does."""

    def stop(number: int, frame: Any) -> None:
        raise Stopped(status=128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP
    numbers = [n for name in names if signal.getsignal(n := getattr(signal, name)) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def deferred() -> Iterator[Callable[[], Stopped | None]]:
    """Inside the block a first Ctrl-C or SIGTERM waits to be asked for; a second one is raised at once.

    Gives a function that returns the Stopped that came, None so far. So a training step is never cut in two.
    """
    came: list[Stopped] = []

    def hold(number: int, frame: Any) -> None:
        if came:
            raise came[0]
        came.append(Stopped(status=128 + number))

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, hold) for number in numbers}
    try:
        yield lambda: came[0] if came else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
