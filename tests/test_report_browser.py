"""Contract of the report's page in a real browser: a keyboard moves the handle between two pictures and the picture
changes, blurred pictures are shown when somebody asks, the theme switches, a phone of 360 pixels shows no sideways
scroll, the console stays empty and the network unused. Skipped where no Chromium is installed.

The browser is driven over a pipe (`--remote-debugging-pipe`): JSON messages that end in NUL.
"""

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from erase.report import write_report
from report_folder import build_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-dev-shm-usage",
         "--remote-debugging-pipe", "about:blank")  # fmt: skip
# The browser reads from file descriptor 3 and writes to 4, whatever those are in this process.
LAUNCHER = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
PATIENCE = 60.0
KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "Enter": 13, " ": 32, "Tab": 9}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def high_pipe() -> tuple[int, int]:
    """A pipe whose ends are no small numbers, so that dup2 to 3 and 4 cannot overwrite one of them."""
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in ends)
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


class Browser:
    """One headless Chromium with one page."""

    def __init__(self, profile: Path):
        (theirs_in, self.send_end), (self.receive_end, theirs_out) = high_pipe(), high_pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(theirs_in), str(theirs_out), str(CHROMIUM), *FLAGS,
             f"--user-data-dir={profile}"],
            pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self.received, self.calls, self.events, self.session = b"", 0, [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.send_end)
        os.close(self.receive_end)

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self.received:
            ready, _, _ = select.select([self.receive_end], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self.receive_end, 1 << 20) if ready else b""
            if not chunk:
                raise TimeoutError("the browser ended" if ready else "the browser did not answer in time")
            self.received += chunk
        message, _, self.received = self.received.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One DevTools command; events that arrive meanwhile are kept."""
        self.calls += 1
        message = {"id": self.calls, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.send_end, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while (answer := self._next(deadline)).get("id") != self.calls:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path: Path, width: int, height: int = 800) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        first = len(self.events)
        self.call("Page.navigate", url=path.as_uri())
        deadline = time.monotonic() + PATIENCE
        while not any(event["method"] == "Page.loadEventFired" for event in self.events[first:]):
            self.events.append(self._next(deadline))

    def js(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, times: int = 1) -> None:
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for _ in range(times):
            for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key if key.strip() else "Space",
                          windowsVirtualKeyCode=KEYS[key], **({"text": text} if kind == "keyDown" else {}))  # fmt: skip

    def mouse(self, kind: str, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def place(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height in the window, scrolled into view."""
        box = f"document.querySelector('{selector}')"
        self.js(f"{box}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        return tuple(self.js(f"(r => [r.x, r.y, r.width, r.height])({box}.getBoundingClientRect())"))

    def complaints(self) -> list[Any]:
        """Exceptions, console messages and every request that left the disk."""
        found = [e for e in self.events if e["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled")]
        found += [e for e in self.events if e["method"] == "Log.entryAdded"]
        requests = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        assert requests
        return found + [url for url in requests if not url.startswith(("file:", "data:", "about:"))]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with two blurred pairs."""
    run = build_run(tmp_path_factory.mktemp("report") / "run")
    for model in ("base", "erased"):
        path = run / "evaluation" / model / "records.jsonl"
        marked = path.read_text().replace('"id": "row-0"', '"id": "row-0", "sensitive": true')
        path.write_text(marked.replace('"id": "row-9"', '"id": "row-9", "sensitive": true'))
    return write_report(run)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    driven = Browser(tmp_path_factory.mktemp("profile"))
    try:
        yield driven
    finally:
        driven.close()


CLIP = "getComputedStyle(document.querySelector('.pair img.base')).clipPath"
BLUR = "getComputedStyle(document.querySelector('{} img.base')).filter"


def test_the_page_works_in_a_browser(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    keyboard_moves_the_handle(browser)
    pointer_drags_the_handle(browser)
    one_range_moves_all_pairs(browser)
    blurred_pictures_are_shown_on_request(browser)
    theme_switches(browser)
    browser.open(page, 360)
    nothing_scrolls_sideways(browser)
    assert browser.complaints() == []
    browser.js("console.error('heard')")
    assert len(browser.complaints()) == 1


def keyboard_moves_the_handle(browser: Browser) -> None:
    browser.js("document.querySelector('.slide').focus()")
    assert "50%" in browser.js(CLIP)
    browser.press("ArrowRight", 3)
    assert "47%" in browser.js(CLIP)
    assert browser.js("document.querySelector('.slide').getAttribute('aria-valuetext')") == "53 % base, 47 % erased"
    browser.press("Home")
    assert "100%" in browser.js(CLIP)


def pointer_drags_the_handle(browser: Browser) -> None:
    left, top, width, height = browser.place(".pair .frame")
    browser.mouse("mousePressed", left + 0.2 * width, top + 0.7 * height)
    browser.mouse("mouseMoved", left + 0.8 * width, top + 0.7 * height)
    browser.mouse("mouseReleased", left + 0.8 * width, top + 0.7 * height)
    assert abs(int(browser.js("document.querySelector('.slide').value")) - 80) <= 1


def one_range_moves_all_pairs(browser: Browser) -> None:
    browser.js("document.getElementById('all-pairs').focus()")
    browser.press("ArrowLeft")
    assert browser.js("[...new Set([...document.querySelectorAll('.slide')].map(i => i.value))].join()") == "49"


def blurred_pictures_are_shown_on_request(browser: Browser) -> None:
    frames = ".frame:has(.reveal)"
    assert browser.js("document.querySelectorAll('.reveal').length") == 2
    assert browser.js(BLUR.format(frames)).startswith("blur")
    browser.js("document.querySelector('.reveal').focus()")
    for key in ("Enter", " "):
        browser.press(key)
        shown = browser.js("document.querySelector('.reveal').getAttribute('aria-pressed')") == "true"
        assert shown == (key == "Enter") == (browser.js(BLUR.format(frames)) == "none")
    left, top, width, height = browser.place("#reveal-all")
    browser.mouse("mousePressed", left + width / 2, top + height / 2)
    browser.mouse("mouseReleased", left + width / 2, top + height / 2)
    assert browser.js("document.querySelectorAll('.reveal[aria-pressed=true]').length") == 2


def theme_switches(browser: Browser) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    before = browser.js(colour)
    browser.js("document.getElementById('theme').focus()")
    browser.press("Enter")
    after = browser.js(colour)
    browser.press("Enter")
    assert before != after and browser.js(colour) == before


def nothing_scrolls_sideways(browser: Browser) -> None:
    browser.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.js("document.documentElement.scrollWidth") <= 360
