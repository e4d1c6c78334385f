"""The floors of the package, as the README lists them: rooms import only from floors below, no two files each other.

Computed from the sources, so that imports within functions and those for type checkers count too.
"""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"mm_lightning": ROOT / "mm_lightning", "mm_lightning.callbacks": ROOT / "callbacks"}
FLOORS = (
    {"memory"},
    {"networks", "data"},
    {"checkpoint"},
    {"training"},
    {"inference"},
    {"inspection"},
    {"evaluation"},
    {"experiments"},
    {"callbacks"},
    {"cli", "transformers"},
)
"""From the lowest to the highest; rooms of one floor know nothing of each other. Single files are below all of them."""
RANKS = {room: rank for rank, rooms in enumerate(FLOORS, 1) for room in rooms}
COMPOSES = "mm_lightning.training.run_trainer"
"""The one file that imports from above: it gives every run the callbacks that are always there."""


def sources():
    """The files of the package by module."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


def imported(text, known):
    """The modules among `known` that a source text imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            found |= {name if (name := f"{node.module}.{alias.name}") in known else node.module for alias in node.names}
    return found & known


@pytest.fixture(scope="module")
def graph():
    files = sources()
    return {module: imported(path.read_text(encoding="utf-8"), files.keys()) for module, path in files.items()}


def room(module):
    """The room of a module; None for the package itself and its single files, except those above all rooms."""
    name = module.split(".")[1] if "." in module else None
    return name if name in RANKS else None


def test_imports_in_functions_and_for_types_are_seen():
    text = "import a.b\nfrom a import c\nfrom a.d import D\nimport z"
    text += "\nif TYPE_CHECKING:\n    from a.e import E\ndef f():\n    from a.g import h"
    known = {"a", *(f"a.{name}" for name in "bcdegi")}
    assert imported(text, known) == known - {"a", "a.i"}


def test_every_room_has_a_floor():
    assert {module.split(".")[1] for module in sources() if module.count(".") > 1} <= RANKS.keys()


def test_no_circle_between_files(graph):
    TopologicalSorter(graph).prepare()  # which raises a CycleError that names them


def test_rooms_import_from_below(graph):
    upward = [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in others
        if room(module) != room(other) and RANKS.get(room(other), 0) >= RANKS.get(room(module), 0)
    ]
    assert [line for line in upward if not line.startswith(f"{COMPOSES} imports mm_lightning.callbacks")] == []
    assert upward, "nothing composes the callbacks any more: the exception can go"


def test_data_knows_documents_only(graph):
    others = {other for module, others in graph.items() if room(module) == "data" for other in others}
    assert {other for other in others if room(other) == "memory"} == {"mm_lightning.memory.documents"}


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_package_imports_nothing_and_installs_no_hook():
    code = "import sys; hooks, before = [*sys.meta_path], {*sys.modules}; import mm_lightning;"
    assert python(code + "print({*sys.modules} - before, sys.meta_path == hooks)") == "{'mm_lightning'} True"
