"""Contract of the house: the rooms of `erase/` are in the order in which the data flows and no import runs up, no two
modules import each other in a circle, files and functions stay short, and the package itself holds few loose files.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "erase"
ORDER = (
    "layout", "suggest", "runtime", "ledger", "files", "output", "concepts", "methods", "config", "parsing", "canvas",
    "models", "data", "resume", "saliency", "trained", "closed_form", "export", "draw", "evaluate", "html", "report",
    "compare", "classifiers", "run", "commands", "cli", "__main__",
)  # fmt: skip
"""Every room and loose module; each imports from those before it alone."""
LONGEST_FILE, LONGEST_FUNCTION, LOOSE_FILES = 400, 60, 14


def modules() -> dict[str, Path]:
    """Dotted name below the package → file."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = modules()


def imported(name: str) -> Iterator[str]:
    """What a module imports from this package when it runs, inside functions too; names for type checkers aside."""
    path = MODULES[name]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    is_typing = (node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    aside = {id(inner) for node in is_typing for inner in ast.walk(node)}
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in aside:
            base = [part for part in package[: len(package) - node.level + 1] if part]
            source = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}".strip(".")
                yield inner if inner in MODULES else source


def test_every_room_is_in_the_order() -> None:
    rooms = {name.split(".")[0] for name in MODULES} - {""}
    assert rooms == set(ORDER)


def test_no_import_runs_up() -> None:
    rank = {room: at for at, room in enumerate(ORDER)}
    upward = [
        f"{name} imports {other}"
        for name in MODULES
        for other in imported(name)
        if name and other and rank[other.split(".")[0]] > rank[name.split(".")[0]]
    ]
    assert upward == []


def test_no_circle() -> None:
    graph = {name: {other for other in imported(name) if other and other != name} for name in MODULES if name}
    done: set[str] = set()

    def visit(name: str, road: tuple[str, ...]) -> None:
        assert name not in road, " → ".join((*road[road.index(name) :], name))
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*road, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_few_loose_files() -> None:
    loose = [path.name for path in PACKAGE.iterdir() if path.is_file()]
    assert len(loose) <= LOOSE_FILES, sorted(loose)


def test_files_and_functions_are_short() -> None:
    lengths = []
    for path in MODULES.values():
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= LONGEST_FILE, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                lengths.append(node.end_lineno - node.lineno + 1)
                assert lengths[-1] <= LONGEST_FUNCTION, f"{path}: {node.name}"
    assert median(lengths) <= 8


def test_every_package_says_what_it_is() -> None:
    for name, path in MODULES.items():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), name
