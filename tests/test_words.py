"""Mechanical rules about words: first words of docstrings, names of files, and names that were replaced."""

import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = [path for room in ("mm_lightning", "callbacks") for path in sorted((ROOT / room).rglob("*.py"))]

RIDDLE = re.compile(r"(Of|What|That|Whether|Where|How)\b")
REPLACED = r"""
    \b(?:class|import)[ ](?:Pairs|SharedPairs|BlockStore|Subject|Form|Plan|Average|Guard|State|Blocks)\b
    |\b(?:long_store|draw_step|decay_groups|token_by_token|read_near|read_dropped|step_numbers|validation_rows)\b
    |\b(?:native_step|native_blocks|triton_passes|memory_plan|starting_point|at_rest)\b
    |\bdef[ ](?:short|unit|trial|problem|compiled|enter|leave)\(
    |\b(?:colour|optimis|initialis|normalis|behaviour|neighbour|modelling|licence)
"""


def riddles(path):
    """Return the docstrings of a file that begin with a riddle, those of bool properties left out."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, documented)]
    texts = {node: ast.get_docstring(node) or "" for node in nodes}
    yes_or_no = [n for n in nodes if getattr(n, "decorator_list", None) and getattr(n, "returns", None)]
    yes_or_no = [node for node in yes_or_no if ast.unparse(node.returns) == "bool"]
    return [text.splitlines()[0] for node, text in texts.items() if RIDDLE.match(text) and node not in yes_or_no]


def test_docstrings_say_what_a_thing_is_or_does():
    names = {path: path.relative_to(ROOT).as_posix() for path in SOURCES}
    wrong = {name: riddles(path) for path, name in names.items()}
    assert {name: lines for name, lines in wrong.items() if lines} == {}


def test_no_two_files_of_a_room_share_a_name():
    for room in [ROOT / "callbacks", *(path for path in (ROOT / "mm_lightning").iterdir() if path.is_dir())]:
        names = Counter(path.name for path in room.rglob("*.py") if path.name != "__init__.py")
        assert [name for name, count in names.items() if count > 1] == [], room.name


def test_replaced_names_stay_away():
    pattern = re.compile(REPLACED, re.VERBOSE)
    old = ROOT / "mm_lightning" / "renamed.py"  # which names them
    lines = [f"{path.name}: {line}" for path in SOURCES if path != old for line in path.read_text().splitlines()]
    assert [line for line in lines if pattern.search(line)] == []
