"""Copy the modeling code into one flat folder that needs no package: the source files, side by side.

transformers loads code that comes with a model from one flat folder, whose files import each other as `.name`. So
`mm_lightning/memory/state.py` becomes `memory_state.py`, and only its import lines change.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from mm_lightning import __version__

PACKAGE = "mm_lightning"
MODULES = tuple(f"{PACKAGE}.inference.{name}" for name in ("configuration", "tokenization", "modeling"))
"""The modules that transformers loads from a self-contained folder."""
_IMPORT = re.compile(rf"^(\s*)from {PACKAGE}\.([\w.]+) import (\w*)", re.MULTILINE)
_OTHER = re.compile(rf"^\s*(import|from) {PACKAGE}\b", re.MULTILINE)


def flat_name(module: str) -> str:
    """Return the flat name of a module: `memory_state` for `mm_lightning.memory.state`."""
    return module.removeprefix(f"{PACKAGE}.").replace(".", "_")


def flatten(*modules: str) -> dict[str, str]:
    """Return the texts of modules, and of all modules of this package that they import, by file name."""
    texts: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        file = f"{flat_name(name)}.py"
        if file in texts:
            continue
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        text = Path(spec.origin).read_text(encoding="utf-8")
        for _, inner, imported in _IMPORT.findall(text):
            waiting += [f"{PACKAGE}.{inner}.{imported}" if _is_module(inner, imported) else f"{PACKAGE}.{inner}"]
        text = _IMPORT.sub(_relative, text)
        assert not _OTHER.search(text), f"{name} imports the package itself"
        texts[file] = f"# mm-lightning {__version__} (Apache-2.0): {name.replace('.', '/')}.py\n{text}"
    entry_points = {f"{flat_name(module)}.py" for module in modules}
    imports = "if False:\n" + "".join(
        f"    from .{file.removesuffix('.py')} import __doc__ as _  # noqa\n"
        for file in sorted(texts.keys() - entry_points)
    )
    for file in entry_points:  # never executed: some of these modules need optional packages
        texts[file] += f"\n# Older versions of transformers fetch only the files that this one names.\n{imports}"
    return texts


def _is_module(package: str, name: str) -> bool:
    """Return whether `from mm_lightning.PACKAGE import NAME` imports a module, as memory.kernels has them."""
    return (Path(__file__).parents[1] / package.replace(".", "/") / f"{name}.py").is_file()


def _relative(match: re.Match[str]) -> str:
    indent, module, name = match.groups()
    if _is_module(module, name):
        return f"{indent}from . import {flat_name(module)}_{name} as {name}"
    return f"{indent}from .{flat_name(module)} import {name}"


def holds_other_code(folder: Path) -> bool:
    """Return whether a folder has modeling code that differs from what this version writes."""
    if not (folder / f"{flat_name(MODULES[-1])}.py").is_file():
        return False
    files = flatten(*MODULES)
    return any(not (folder / n).is_file() or (folder / n).read_text(encoding="utf-8") != files[n] for n in files)
