"""The modelling code as a folder without this package: copies of the real source files, side by side.

transformers loads code that comes with a model from one flat folder, whose files import each other as `.name`. So
`mm_lightning/memory/state.py` becomes `memory_state.py`, and only its import lines change.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from mm_lightning import __version__

PACKAGE = "mm_lightning"
_IMPORT = re.compile(rf"^(\s*)from {PACKAGE}\.([\w.]+) import ", re.MULTILINE)
_OTHER = re.compile(rf"^\s*(import|from) {PACKAGE}\b", re.MULTILINE)


def flat_name(module: str) -> str:
    """`memory_state` for `mm_lightning.memory.state`."""
    return module.removeprefix(f"{PACKAGE}.").replace(".", "_")


def flatten(module: str) -> dict[str, str]:
    """The text of a module and of all modules of this package that it needs, by file name."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = f"{flat_name(name)}.py"
        if file in found:
            continue
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        text = Path(spec.origin).read_text(encoding="utf-8")
        waiting += [f"{PACKAGE}.{inner}" for _, inner in _IMPORT.findall(text)]
        text = _IMPORT.sub(lambda match: f"{match[1]}from .{flat_name(match[2])} import ", text)
        assert not _OTHER.search(text), f"{name} imports the package itself"
        found[file] = f"# mm-lightning {__version__} (Apache-2.0): {name.replace('.', '/')}.py\n{text}"
    return found
