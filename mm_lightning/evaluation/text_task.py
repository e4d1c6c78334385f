"""Tasks that read long texts."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mm_lightning.errors import UserError
from mm_lightning.evaluation.long_documents import Stretch, Texts, digest, of_files, of_run, stretches
from mm_lightning.evaluation.task import Task
from mm_lightning.ranges import Count, Place, check_fields

if TYPE_CHECKING:
    from mm_lightning.evaluation.model import Model


@dataclass
class ReadingTask(Task):
    """A task about sequences of documents.

    Args:
        contexts: lengths in tokens; by default the training context, of loss_by_position and long_ppl also 2, 4 and 8
            times as many.
        limit: sequences of each length at most.
        text: files, folders or globs, named as for `mm data prepare`, or a folder of prepared data; by default the
            validation documents of the network's own data.
    """

    least: ClassVar[int]  # tokens of a context
    multiples: ClassVar[tuple[int, ...]] = (1,)  # of the training context

    contexts: list[Count] | None = None
    limit: Count | None = 32
    text: list[Place] | None = None
    data_hash: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.contexts is not None:
            self.contexts = sorted(set(self.contexts))
            if not self.contexts or self.contexts[0] < self.least:
                raise UserError(f"contexts of {self.name} begin with {self.least} tokens, got {self.contexts}")
        self._hashes: dict[Path | None, str] = {}

    def settings_for(self, checkpoint: Path | None) -> dict[str, Any]:
        """Return the settings; the text counts by its content, not by its place."""
        place = None if self.text else checkpoint
        if place not in self._hashes:
            self._hashes[place] = digest(self.text, place)
        result = self._hashes[place]
        if self.data_hash not in (None, result):
            what = " ".join(self.text) if self.text else "the data of the run"
            raise UserError(f"{what}: its hash is {result}, not data_hash {self.data_hash}")
        text = self.text and [Path(path).name for path in self.text]
        return {**self.settings(), "text": text, "data_hash": result}

    def lengths(self, model: Model) -> list[int]:
        """Return the contexts to evaluate."""
        if self.contexts is not None:
            return self.contexts
        if model.context_length is None or model.context_length < self.least:
            raise UserError(f"the training context is unknown or below {self.least}: say --contexts")
        return [times * model.context_length for times in self.multiples]

    def documents(self, model: Model) -> Texts:
        """Return the documents that are read."""
        return of_files(self.text, model.tokenizer) if self.text else of_run(model.checkpoint, model.tokenizer)

    def sequences(self, documents: Texts, length: int) -> dict[str, Stretch]:
        """Return sequences of so many tokens by their keys.

        Raises:
            UserError: there is too little text.
        """
        sequences = stretches(documents, length, self.limit or len(documents.parts))
        if not sequences:
            raise UserError(
                f"{documents.source} has {documents.tokens:,} tokens, not enough for a sequence of {length:,}: "
                f"shorter --contexts, or more files by --text"
            )
        return {
            f"{length} tokens of document {x.documents[0]}, {zlib.crc32(x.tokens.tobytes()):08x}": x for x in sequences
        }
