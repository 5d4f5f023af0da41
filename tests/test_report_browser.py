"""Contract of the report's page in a real browser: base and erased stand whole beside each other, also on paper; on
request a keyboard moves a handle between them; blurred pictures are shown when somebody asks; the theme switches; a
phone of 390 or 360 pixels shows every column of every table without scrolling sideways; the words are explained; the
console stays empty and the network unused. Skipped where no Chromium is installed.

The browser is driven over a pipe (`--remote-debugging-pipe`): JSON messages that end in NUL.
"""

import fcntl
import json
import os
import re
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
from report_folder import RETAINED, TARGETS, build_run

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


CLIP = "getComputedStyle(document.querySelector('.pair .side.base')).clipPath"
BLUR = "getComputedStyle(document.querySelector('{} img.base')).filter"


def test_the_page_works_in_a_browser(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    pictures_stand_side_by_side(browser)
    words_are_explained(browser)
    a_button_lays_one_over_the_other(browser)
    keyboard_moves_the_handle(browser)
    pointer_drags_the_handle(browser)
    one_range_moves_all_pairs(browser)
    blurred_pictures_are_shown_on_request(browser)
    theme_switches(browser)
    paper_shows_both_pictures(browser)
    for width in (390, 360):
        browser.open(page, width)
        pictures_stand_side_by_side(browser)
        every_column_shows(browser, width)
    assert browser.complaints() == []
    browser.js("console.error('heard')")
    assert len(browser.complaints()) == 1


# Of every pair: left, top, right and bottom of both pictures, what is cut off them, and the words below.
PAIRS = """[...document.querySelectorAll('.pair')].map(pair => ({
    boxes: [...pair.querySelectorAll('.side')].map(side => (r => [r.left, r.top, r.right, r.bottom])
        (side.querySelector('img').getBoundingClientRect())),
    clips: [...pair.querySelectorAll('.side')].map(side => getComputedStyle(side).clipPath),
    slider: getComputedStyle(pair.querySelector('.slide')).display,
    words: [...pair.querySelectorAll('.under')].filter(e => e.checkVisibility()).map(e => e.innerText.split('\\n')[0])
}))"""


def pictures_stand_side_by_side(browser: Browser) -> None:
    pairs = browser.js(PAIRS)
    assert len(pairs) == TARGETS + RETAINED
    for pair in pairs:
        base, erased = pair["boxes"]
        assert base[0] < base[2] <= erased[0] < erased[2]
        assert [base[1], base[3]] == pytest.approx([erased[1], erased[3]], abs=1)
        assert base[2] - base[0] == pytest.approx(erased[2] - erased[0], abs=1) and base[2] - base[0] > 60
        # 48 × 48 pictures, so what is shown is as high as it is wide.
        assert base[3] - base[1] == pytest.approx(base[2] - base[0], abs=1)
        assert (pair["clips"], pair["slider"]) == (["none", "none"], "none")
        assert pair["words"] == ["base", "erased"]


def words_are_explained(browser: Browser) -> None:
    words = browser.js("document.querySelector('#glossary dl').innerText")
    assert all(f"{word}\n" in words for word in ("UA", "IRA", "seed", "95 % interval", "mask, salient weights"))
    assert "FID" not in words
    assert browser.js("document.querySelector('nav a[href=\"#limits\"]').checkVisibility()")


def a_button_lays_one_over_the_other(browser: Browser) -> None:
    browser.js("document.getElementById('overlay').focus()")
    browser.press("Enter")
    assert browser.js("document.getElementById('overlay').getAttribute('aria-pressed')") == "true"
    pairs = browser.js(PAIRS)
    assert all(pair["boxes"][0] == pair["boxes"][1] and pair["slider"] != "none" for pair in pairs)


def paper_shows_both_pictures(browser: Browser) -> None:
    """Whatever the screen shows: here one over the other, in the dark."""
    browser.js("document.documentElement.dataset.theme = 'dark'")
    assert "inset" in browser.js(CLIP)
    browser.call("Emulation.setEmulatedMedia", media="print")
    pictures_stand_side_by_side(browser)
    for part in ("body", ".box"):
        colour = browser.js(f"getComputedStyle(document.querySelector('{part}')).backgroundColor")
        assert min(map(int, re.findall(r"\d+", colour))) > 200
    assert not browser.js("document.getElementById('overlay').checkVisibility()")
    browser.call("Emulation.setEmulatedMedia", media="")
    browser.js("document.documentElement.dataset.theme = 'light'")


# Cells that are cut off, and those that do not say which column they belong to, where a row is set as a block.
HIDDEN_CELLS = """(width => [...document.querySelectorAll('table[role=table] tbody tr > *')].filter(cell => {
    const box = cell.getBoundingClientRect(), chart = cell.matches('.chart:not(:has(svg))');
    return !chart && (!cell.checkVisibility() || box.width < 8 || box.left < 0 || box.right > width
        || cell.scrollWidth > cell.clientWidth + 1);
}).map(cell => cell.outerHTML.slice(0, 200)))"""
UNNAMED_CELLS = """[...document.querySelectorAll('table.stacked')].flatMap(table => {
    const heads = [...table.querySelectorAll('thead th')].map(th => th.textContent);
    return [...table.querySelectorAll('tbody tr')].flatMap(row => [...row.children].filter((cell, at) =>
        at && heads[at] && getComputedStyle(cell, '::before').content !== JSON.stringify(heads[at])));
}).map(cell => cell.outerHTML.slice(0, 200))"""


def every_column_shows(browser: Browser, width: int) -> None:
    """On a narrow screen: all cells of all tables lie in the window, each under its column's name."""
    browser.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.js("document.documentElement.scrollWidth") <= width
    assert browser.js("document.querySelectorAll('table[role=table] tbody td').length") > 20
    assert browser.js(f"{HIDDEN_CELLS}({width})") == []
    assert browser.js(UNNAMED_CELLS) == []


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
