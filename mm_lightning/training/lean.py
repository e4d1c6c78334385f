"""A quick start: half of what `import lightning` loads serves metrics of images, sounds and translations."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

UNUSED = ("PIL", "librosa", "matplotlib", "nltk", "onnxruntime", "scipy", "torchaudio", "torchvision", "transformers")
"""Packages that torchmetrics, which lightning imports, loads where they are installed; its means do without."""


def import_torchmetrics() -> None:
    """Imports torchmetrics, if nothing has yet, without these packages; whoever imports one later gets it."""
    if "torchmetrics" not in sys.modules:
        with _as_if_not_installed():
            import torchmetrics  # noqa: F401


@contextmanager
def _as_if_not_installed() -> Iterator[None]:
    from lightning_utilities.core import imports

    available, met = imports.package_available, imports.RequirementCache.__bool__
    imports.package_available = lambda name: name not in UNUSED and available(name)
    imports.RequirementCache.__bool__ = lambda self: (
        not str(getattr(self, "requirement", "")).startswith(UNUSED) and met(self)
    )
    try:
        yield
    finally:
        imports.package_available, imports.RequirementCache.__bool__ = available, met
