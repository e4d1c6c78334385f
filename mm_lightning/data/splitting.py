"""Choose the text of the validation split: a share of the bytes, by a hash of each document."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from mm_lightning.errors import UserError
from mm_lightning.outputs import write_json

_ENOUGH = 1 << 28  # bytes of text after which the hash alone is known to give the share, or not
_SEQUENCE = 1 << 14  # bytes that hold a sequence of usual length


def fraction_of(text: str, purpose: str = "split") -> float:
    """Return the hash of a text as a number in [0, 1); other purposes give independent numbers."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=purpose.encode())
    return int.from_bytes(digest.digest()) / 2**64


@dataclass(frozen=True)
class DocumentSplit:
    """The rule that assigns documents to splits.

    Attributes:
        below: documents whose hash, from 0 to 1, is below this are for validation.
        cut: bytes at the end of the document with the hash `below` that are for validation too; 0 cuts none.
    """

    below: float
    cut: int = 0

    def parts(self, text: str) -> list[tuple[int, str]]:
        """Return the parts of a document, each with the number of its split: 0 for training, 1 for validation."""
        place = fraction_of(text)
        if self.cut and place == self.below:
            at = _cut_position(text, self.cut)
            return [(which, part) for which, part in ((0, text[:at]), (1, text[at:])) if part]
        return [(int(place < self.below), text)]

    def save(self, path: Path) -> None:
        """Write the rule as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> DocumentSplit:
        """Read what `save` wrote; a KeyError, TypeError or ValueError where it is damaged."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(content["below"], content["cut"])


def _cut_position(text: str, tail: int) -> int:
    """Return the character from which about `tail` bytes remain, behind a line end or a space if one is near."""
    data = text.encode()
    at = len(data[: max(len(data) - tail, 0)].decode(errors="ignore"))
    at = min(max(at, 1), len(text) - 1)
    for mark in ("\n", " "):
        near = text.rfind(mark, max(0, at - min(at, len(text) - at) // 2), at)
        if near > 0:
            return near + 1
    return at


def plan_split(texts: Iterable[str], fraction: float) -> tuple[DocumentSplit, str]:
    """Return the rule that sets apart a share of the text, and a line with the resulting sizes.

    Documents whose hash is below `fraction` are for validation if they hold between half and twice that share of the
    bytes, and the others likewise of the rest; then no document changes sides when others are added. With few or very
    unequal documents they may hold more or less: then documents are taken in the order of their hashes until the share
    is reached, and one that is too long for that is cut.

    Args:
        texts: all documents; of many only the first are read.
        fraction: the share, above 0. At least what a sequence takes is set apart, where that is not too much of a
            small text.

    Raises:
        UserError: there is too little text to set any of it apart.
    """
    sizes: list[tuple[float, int]] = []
    total, chosen, count, step = 0, 0, 0, _ENOUGH
    for text in filter(None, texts):
        place, size = fraction_of(text), len(text.encode())
        sizes.append((place, size))
        total += size
        if place < fraction:
            chosen, count = chosen + size, count + 1
        if total >= step:
            if _near(chosen, _target(total, fraction), total):
                return DocumentSplit(fraction), f"validation: about {chosen / total:.2%} of the text, by documents"
            step += _ENOUGH
    target = _target(total, fraction)
    if not sizes:
        raise UserError("there is no text in the sources")
    if not target:
        raise UserError(
            f"{total} bytes are too little for a validation split: give more text, or validation_fraction 0"
        )
    if _near(chosen, target, total):
        return DocumentSplit(fraction), _described(chosen, total, count, len(sizes), 0)
    return _by_rank(sizes, total, target)


def _target(total: int, fraction: float) -> int:
    """Return the target size of the validation text, in bytes: the share, at least a sequence or a tenth."""
    return int(max(fraction * total, min(_SEQUENCE, total / 10)))


def _near(size: int, target: int, total: int) -> bool:
    """Return whether validation and training both get between half and twice their share."""
    pairs = ((size, target), (total - size, total - target))
    return size > 0 and all(share / 2 <= part <= 2 * share for part, share in pairs)


def _by_rank(sizes: list[tuple[float, int]], total: int, target: int) -> tuple[DocumentSplit, str]:
    by_place: dict[float, list[int]] = {}
    for place, size in sizes:
        by_place.setdefault(place, []).append(size)  # equal documents stay together
    chosen = count = 0
    for place in sorted(by_place):
        size, copies = sum(by_place[place]), len(by_place[place])
        if chosen >= target:
            return DocumentSplit(place), _described(chosen, total, count, len(sizes), 0)
        if chosen + size - target > min(target, total - target) / 2:
            cut = max((target - chosen) // copies, 1)
            return DocumentSplit(place, cut), _described(chosen + cut * copies, total, count, len(sizes), copies)
        chosen, count = chosen + size, count + copies
    return DocumentSplit(1.0), _described(chosen, total, count, len(sizes), 0)


def _described(chosen: int, total: int, count: int, documents: int, cut: int) -> str:
    end = f" and the end of {'another' if count else 'one'}" if cut else ""
    return (
        f"validation: {chosen:,} of {total:,} bytes of text ({chosen / total:.2%}), {count:,} of {documents:,} "
        f"documents{end}, chosen by a hash; the rest is for training"
    )
