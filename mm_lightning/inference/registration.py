"""Tells transformers of our networks as soon as somebody imports its auto classes, and not before.

`import mm_lightning` must stay light, and transformers may be imported before it, after it or never. So what has to be
registered waits at the import of the modules that hold the tables of the auto classes.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

CONFIGURATIONS = "transformers.models.auto.configuration_auto"
MODELS = "transformers.models.auto.modeling_auto"
TOKENIZERS = "transformers.models.auto.tokenization_auto"


def register_with_transformers() -> None:
    """Registers at once with what is imported, and later with what is not."""
    names = (CONFIGURATIONS, MODELS, TOKENIZERS)
    waiting = set(names) - set(sys.modules)
    for name in names:
        if name not in waiting:
            _register(sys.modules[name])
    if waiting:
        sys.meta_path.insert(0, _Waiting(waiting))


def _register(table: ModuleType) -> None:
    from mm_lightning.inference.configuration import MMLightningConfig

    if table.__name__ == CONFIGURATIONS:
        table.AutoConfig.register(MMLightningConfig.model_type, MMLightningConfig, exist_ok=True)
        return
    if table.__name__ == TOKENIZERS:
        from mm_lightning.inference.tokenization import MMLightningTokenizer

        table.AutoTokenizer.register(MMLightningConfig, fast_tokenizer_class=MMLightningTokenizer, exist_ok=True)
        return
    from mm_lightning.inference.modeling import MMLightningForCausalLM

    table.AutoModelForCausalLM.register(MMLightningConfig, MMLightningForCausalLM, exist_ok=True)


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
        _register(module)
