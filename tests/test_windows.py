"""Nothing of the package needs POSIX at import, and every text is read and written as UTF-8 whatever the system's own.

Windows itself is not at hand: what it lacks is hidden here from a process of its own.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from erase.compare import runner

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "erase").rglob("*.py"), *(ROOT / "scripts").rglob("*.py"), ROOT / "erase.py"])
HIDDEN = """
import sys
sys.path.insert(0, {root!r})
import importlib, os, pkgutil, signal, subprocess, erase
modules = [module.name for module in pkgutil.walk_packages(erase.__path__, "erase.")]
for module in modules:  # what they import of others loads now; the modules themselves once more below
    importlib.import_module(module)
for module in [name for name in sys.modules if name == "erase" or name.startswith("erase.")]:
    del sys.modules[module]
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("SIGHUP", "SIGKILL", "SIGALRM", "SIGUSR1"):
    delattr(signal, name)
for name in ("killpg", "fork", "sched_getaffinity", "sched_setaffinity", "getuid", "setsid", "umask"):
    delattr(os, name)
"""
IMPORTS = """
for module in modules:
    importlib.import_module(module)
    print(module)
import torch
from erase.runtime.devices import make_accelerator, peak_memory
from erase.compare.runner import environment
assert peak_memory(torch.device("cpu")) is None
assert int(environment(0, 2)["OMP_NUM_THREADS"]) >= 1
make_accelerator("no")
"""


def without_posix(code: str) -> "subprocess.CompletedProcess[str]":
    program = HIDDEN.format(root=str(ROOT)) + code
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)


def test_every_module_is_imported_without_what_windows_lacks() -> None:
    done = without_posix(IMPORTS)
    assert done.returncode == 0, done.stderr
    modules = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in SOURCES}
    wanted = {name.removesuffix(".__init__") for name in modules if name.startswith("erase.")} - {"erase"}
    assert set(done.stdout.split()) == wanted


STARTING_ANOTHER = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("up", flush=True)
time.sleep(60)
"""


def test_what_a_run_started_ends_with_it_where_there_are_no_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "killpg")
    process = subprocess.Popen([sys.executable, "-c", STARTING_ANOTHER], stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"up\n"
    (child,) = psutil.Process(process.pid).children()
    runner._stop([process])
    assert process.returncode is not None
    gone, _ = psutil.wait_procs([child], timeout=10)
    assert gone or child.status() == psutil.STATUS_ZOMBIE


MODE = re.compile(r"[rwax]\+?t?")


def unsaid(path: Path) -> Iterator[int]:
    """Lines that open a text, read it or write it without saying its encoding."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    opened = [item.context_expr for node in ast.walk(tree) if isinstance(node, ast.With) for item in node.items]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and not any(keyword.arg == "encoding" for keyword in node.keywords):
            if isinstance(node.func, ast.Attribute):
                first = node.args[0] if node.args else None
                has_mode = isinstance(first, ast.Constant) and bool(MODE.fullmatch(str(first.value)))
                is_open = node.func.attr == "open" and (has_mode or (not node.args and node in opened))
                if is_open or node.func.attr in ("read_text", "write_text"):
                    yield node.lineno
            elif isinstance(node.func, ast.Name) and node.func.id == "open":
                modes = [part.value for part in node.args[1:] if isinstance(part, ast.Constant)]
                if not any("b" in str(mode) for mode in modes):
                    yield node.lineno


def test_texts_say_their_encoding() -> None:
    found = [f"{path.relative_to(ROOT)}:{line}" for path in SOURCES for line in unsaid(path)]
    assert found == []


@pytest.mark.parametrize(
    "text", ["Path('a').read_text()", "open('a')", "p.open('a')", "with p.open() as f: pass", "p.write_text(x)"]
)
def test_the_search_finds_what_it_is_for(text: str, tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(text, encoding="utf-8")
    assert len(list(unsaid(tmp_path / "one.py"))) == 1
