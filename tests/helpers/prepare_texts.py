"""Prepare text files, and read what was written."""

from pathlib import Path

from mm_lightning.data.prepare import prepare
from mm_lightning.data.prepare_config import PrepareConfig


def run(sources, output, **config):
    config = {"validation_fraction": 0.1, "workers": 1, **config}
    return prepare(PrepareConfig([str(source) for source in sources], **config), output, progress=False)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}
