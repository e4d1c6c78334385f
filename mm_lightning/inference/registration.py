"""Tells transformers of our networks as soon as somebody imports its auto classes, and not before.

`import mm_lightning` must stay light, and transformers may be imported before it, after it or never. So what has to be
registered waits at the import of the two modules that hold the tables of the auto classes.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

TABLES = {
    "transformers.models.auto.configuration_auto": "mm_lightning.inference.configuration",
    "transformers.models.auto.modeling_auto": "mm_lightning.inference.modeling",
}
"""The module after whose import ours has to register, by name."""


def register_with_transformers() -> None:
    """Registers at once with what is imported, and later with what is not."""
    waiting = set(TABLES) - set(sys.modules)
    for table in TABLES:
        if table not in waiting:
            _register(table)
    if waiting:
        sys.meta_path.insert(0, _Waiting(waiting))


def _register(table: str) -> None:
    importlib.import_module(TABLES[table]).register()


class _Waiting(MetaPathFinder):
    """Finds what the others find, and registers after its import."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.names:
            return None
        self.names.discard(fullname)
        if not self.names:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader)
        return spec


class _Registering(Loader):
    """Loads as the loader it stands for, then registers."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        _register(module.__name__)
