"""RULER's needles in a haystack: sentences with made-up values, hidden in a long text of noise, prose or other needles.

The prompts are the published ones. In prose the needle that is asked for first stands at depths that are evenly spread
over the 40 published points; all other needles stand at points drawn at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from mm_lightning.data.tokenizer import Tokenizer
from mm_lightning.errors import UserError
from mm_lightning.evaluation.new_knowledge.haystack import NeedleKind, NeedleSource, prose
from mm_lightning.evaluation.new_knowledge.long_text_task import LongTextTask
from mm_lightning.evaluation.new_knowledge.question_source import Source, fingerprint
from mm_lightning.ranges import Place


@dataclass
class Needles(LongTextTask):
    """Values that were hidden in a long text; the score is the share of them that stands in the answer.

    Args:
        essays: the prose that needles are hidden in: a .txt file, a folder of them or a glob; by default text/novels in
            data_dir.
    """

    kind: ClassVar[NeedleKind]
    new_tokens: ClassVar[int] = 128

    data_dir: Place = "data"
    essays: Place | None = None
    data_hash: str | None = None

    def _essays(self) -> str:
        return self.essays or str(Path(self.data_dir) / "text" / "novels")

    def make_source(self, tokenizer: Tokenizer) -> Source:
        """See :meth:`LongTextTask.make_source`."""
        if self.data_hash not in (None, self._found_hash):
            raise UserError(f"{self._essays()}: its hash is {self._found_hash}, not data_hash {self.data_hash}")
        return NeedleSource(self.kind, tokenizer, self.seed, self.new_tokens, self._essays())

    @cached_property
    def _found_hash(self) -> str | None:
        return fingerprint(prose(self._essays())) if self.kind.haystack == "essay" else None

    def settings(self) -> dict[str, Any]:
        """Return the settings; the prose counts by its content, not by its place."""
        return {**super().settings(), "data_dir": "text", "essays": None, "data_hash": self._found_hash}


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
