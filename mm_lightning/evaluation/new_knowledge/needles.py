"""RULER's needles in a haystack: sentences with made-up values, hidden in a long text of noise, prose or other needles.

The prompts are the published ones. In prose the needle that is asked for first stands at depths that are evenly spread
over the 40 published points; all other needles stand at points drawn at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mm_lightning.data.tokenizer import Tokenizer
from mm_lightning.evaluation.new_knowledge.haystack import NeedleKind, NeedleSource
from mm_lightning.evaluation.new_knowledge.samples import Source
from mm_lightning.evaluation.new_knowledge.task import LongTextTask


@dataclass
class Needles(LongTextTask):
    """Values that were hidden in a long text; the score is the share of them that stands in the answer.

    Args:
        contexts: lengths in tokens, those of the answer included: 4096 or 4k.
        limit: questions at each length.
        seed: of everything that is drawn.
        data_dir: folder with the data sets.
        essays: folder of prose, its .txt files; `text/novels` in data_dir if not given.
    """

    kind: ClassVar[NeedleKind]
    new_tokens: ClassVar[int] = 128

    data_dir: str = "data"
    essays: str | None = None

    def _folder(self) -> Path:
        return Path(self.essays or Path(self.data_dir) / "text" / "novels").expanduser()

    def make_source(self, tokenizer: Tokenizer) -> Source:
        """See :meth:`LongTextTask.make_source`."""
        return NeedleSource(self.kind, tokenizer, self.seed, self.new_tokens, self._folder())

    def settings(self) -> dict[str, Any]:
        """With the names and sizes of the files of prose, where they are read, in place of their folder."""
        files = sorted(self._folder().rglob("*.txt")) if self.kind.haystack == "essay" else []
        settings = super().settings()
        del settings["data_dir"]
        return {**settings, "essays": {path.name: path.stat().st_size for path in files}}


@dataclass
class Single1(Needles):
    """Noise, a number."""

    name: ClassVar[str] = "niah_single_1"
    kind: ClassVar[NeedleKind] = NeedleKind("noise")


@dataclass
class Single2(Needles):
    """Prose, a number."""

    name: ClassVar[str] = "niah_single_2"
    kind: ClassVar[NeedleKind] = NeedleKind("essay")


@dataclass
class Single3(Needles):
    """Prose, a uuid."""

    name: ClassVar[str] = "niah_single_3"
    kind: ClassVar[NeedleKind] = NeedleKind("essay", value="uuids")


@dataclass
class MultiKey1(Needles):
    """Prose, one of four keys."""

    name: ClassVar[str] = "niah_multikey_1"
    kind: ClassVar[NeedleKind] = NeedleKind("essay", keys=4)


@dataclass
class MultiKey2(Needles):
    """One of as many needles as fit."""

    name: ClassVar[str] = "niah_multikey_2"
    kind: ClassVar[NeedleKind] = NeedleKind("needle")


@dataclass
class MultiKey3(Needles):
    """One of as many needles as fit, keys and values uuids."""

    name: ClassVar[str] = "niah_multikey_3"
    kind: ClassVar[NeedleKind] = NeedleKind("needle", key="uuids", value="uuids")


@dataclass
class MultiValue(Needles):
    """Prose, the four values of a key."""

    name: ClassVar[str] = "niah_multivalue"
    kind: ClassVar[NeedleKind] = NeedleKind("essay", values=4)


@dataclass
class MultiQuery(Needles):
    """Prose, the values of four keys."""

    name: ClassVar[str] = "niah_multiquery"
    kind: ClassVar[NeedleKind] = NeedleKind("essay", keys=4, queries=4)
