"""Which rooms of the package import which, as the README says."""

import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mm_lightning"
ROOMS = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}


def imported(room):
    """The modules of other rooms that a room imports, also within functions."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in (PACKAGE / room).rglob("*.py"))
    found = re.findall(r"^\s*from mm_lightning\.([\w.]+) import", text, re.M)
    return {module for module in found if module.split(".")[0] in ROOMS - {room}}


@pytest.mark.parametrize(
    ("room", "known"), [("memory", set()), ("data", {"memory.documents"}), ("networks", {"memory"})]
)
def test_rooms_import_from_below(room, known):
    modules = imported(room)
    assert {m if m in known else m.split(".")[0] for m in modules} == known
