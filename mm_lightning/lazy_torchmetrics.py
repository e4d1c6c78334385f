"""An import of torchmetrics that leaves out what nobody asks for.

Its root imports every metric, and with those of images, sound and text torchvision, scipy and transformers where they
are installed: 2 of the 5 seconds of processor time that the imports of `mm fit` take. Lightning needs two classes.
"""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any

ROOT = "torchmetrics"


def import_lazily() -> None:
    """Import torchmetrics such that its root imports each public name when it is first asked for.

    Nothing happens where torchmetrics is imported already, or where its root is not as this module expects it.
    """
    spec = None if ROOT in sys.modules else find_spec(ROOT)
    if spec is None or spec.origin is None:
        return
    homes: dict[str, tuple[str, str]] = {}
    statements: list[ast.stmt] = []
    for statement in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        match statement:
            case ast.ImportFrom(module=str(module), names=names) if _is_inside(module) and names[0].name != "*":
                homes |= {name.asname or name.name: (module, name.name) for name in names}
            case ast.If() if "scipy" in ast.unparse(statement):  # an alias for a package of sounds
                pass
            case _:
                statements.append(statement)

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {ROOT!r} has no attribute {name!r}")
        module, attribute = homes[name]
        value = import_module(f"{ROOT}.{attribute}") if module == ROOT else getattr(import_module(module), attribute)
        setattr(root, name, value)
        return value

    root = module_from_spec(spec)
    root.__getattr__ = load  # type: ignore[method-assign]
    sys.modules[ROOT] = root
    try:
        exec(compile(ast.Module(statements, []), spec.origin, "exec"), root.__dict__)
        import_module(f"{ROOT}.utilities")  # before the metrics, as the root itself does: they import each other
        load("Metric")
    except Exception:
        for name in [name for name in sys.modules if _is_inside(name)]:
            del sys.modules[name]


def _is_inside(module: str) -> bool:
    """Return whether a module is the root or below it."""
    return module.partition(".")[0] == ROOT
