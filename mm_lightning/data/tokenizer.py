"""Tokenizers: plain bytes, or any `tokenizer.json` of the tokenizers library."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_lightning.data.interruptible import interruptible
from mm_lightning.data.tokenizer_json import boundary_template, keeps_bytes, splits_words
from mm_lightning.errors import UserError
from mm_lightning.hub import download, is_repository
from mm_lightning.text_files import read_json, read_text

if TYPE_CHECKING:
    import numpy as np

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"

# Usual names of the tokens around a document, in the order in which they are looked for.
_BOUNDARIES = [(BEGIN, END), ("<s>", "</s>"), ("<bos>", "<eos>"), ("<|endoftext|>", "<|endoftext|>")]

PIECE = 1 << 22
"""Characters of a long text that are encoded at once, where the tokens are the same as those of the whole text."""
_WORD_END = re.compile(r"(?<=[^\W_]) ")
_INTERRUPTIBLE = 1 << 20  # characters, which take a second or so to encode


class Tokenizer(ABC):
    """A tokenizer. It never looks for special tokens in a text: a literal `<|end_of_text|>` in a document is encoded
    as its characters.

    Attributes:
        name: "bytes", or the path it was read from.
        vocab_size: one more than the largest id.
        bos: the id that begins a document.
        eos: the id that ends a document; may be the same as `bos`.
        sha256: hash of the tokenizer's content, whatever the layout of its file.
    """

    name: str
    vocab_size: int
    bos: int
    eos: int
    sha256: str

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without `bos` and `eos`."""
        return self.encode_batch([text])[0]

    def encode_behind(self, text: str) -> list[int]:
        """Return the ids of `text` behind other text, without the space that some tokenizers put before any text."""
        ids = self.encode(text)
        if self._adds_space:
            for end in ("\n", ".", "a"):  # of the other text: one that no token joins with this text
                head, whole = self.encode_batch([end, end + text])
                if self.decode(head).lstrip(" ") == end and whole[: len(head)] == head:
                    return whole[len(head) :]
        return ids

    @functools.cached_property
    def _adds_space(self) -> bool:
        """Return whether two words that are encoded by themselves are decoded with a space between them."""
        return self.decode(self.encode("a") * 2) != "aa"

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without `bos` and `eos`.

        Raises:
            UserError: a text holds half a surrogate pair, which is no character.
        """

    def encode_arrays(self, texts: Sequence[str], dtype: str) -> list[np.ndarray]:
        """Return the ids of `encode_batch` as arrays, which take a tenth of the memory."""
        import numpy as np

        return [np.array(ids, dtype) for ids in self.encode_batch(texts)]

    @abstractmethod
    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Return the text of `ids`.

        Args:
            ids: token ids; those outside the vocabulary are left out.
            special: also show special tokens, by name.
        """

    def text_bytes(self, counts: np.ndarray) -> int | None:
        """Return the bytes of text that tokens stand for; None where the tokens do not determine them.

        Args:
            counts: (vocab_size,) number of occurrences of each token, `bos` and `eos` included.
        """
        return None

    @abstractmethod
    def to_json(self) -> str:
        """Return the text of a JSON file that `load_tokenizer` reads back."""

    def save(self, path: str | os.PathLike) -> None:
        """Write a JSON file that `load_tokenizer` reads back."""
        Path(path).write_text(self.to_json(), encoding="utf-8")


_BYTES = {"tokenizer": "bytes"}
"""The content of the byte tokenizer's file."""


class ByteTokenizer(Tokenizer):
    """The 256 byte values of UTF-8, then `bos` and `eos`. Needs no file."""

    def __init__(self) -> None:
        self.name, self.vocab_size, self.bos, self.eos = "bytes", 258, 256, 257
        self.sha256 = _digest(_BYTES)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(_utf8(text)) for text in texts]

    def encode_arrays(self, texts: Sequence[str], dtype: str) -> list[np.ndarray]:
        import numpy as np

        return [np.frombuffer(_utf8(text), np.uint8).astype(dtype) for text in texts]

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        names = {self.bos: BEGIN.encode(), self.eos: END.encode()} if special else {}
        pieces = (bytes([i]) if 0 <= i < 256 else names.get(i, b"") for i in ids)
        return b"".join(pieces).decode(errors="replace")

    def text_bytes(self, counts: np.ndarray) -> int:
        return int(counts[:256].sum())

    def to_json(self) -> str:
        return json.dumps(_BYTES) + "\n"


class FileTokenizer(Tokenizer):
    """A `tokenizer.json` of the tokenizers library.

    Args:
        path: the file.
        bos: the name of the token that begins a document, where it is none of the usual ones.
        eos: likewise of the token that ends a document. One of the two alone is both.
        text: the content of the file; read from it if not given.
    """

    def __init__(
        self, path: str | os.PathLike, bos: str | None = None, eos: str | None = None, text: str | None = None
    ) -> None:
        import tokenizers

        self.name = str(path)
        text = read_text(path) if text is None else text
        try:
            content = json.loads(text)
            self._inner = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            reason = str(error).splitlines()[0][:200]
            raise UserError(f"{path} is not a tokenizer.json of the tokenizers library: {reason}") from error
        if bos or eos:
            content = self._with_boundaries(bos or eos or "", eos or bos or "")
        self._inner.no_padding()
        self._inner.no_truncation()
        self._inner.encode_special_tokens = True
        self._content = {key: value for key, value in content.items() if key not in ("padding", "truncation")}
        self.sha256 = _digest(self._content)
        ids = self._inner.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values(), default=-1) + 1
        self.bos, self.eos = self._boundaries(ids)

    def _with_boundaries(self, bos: str, eos: str) -> dict[str, Any]:
        """Return the content with these tokens in its post-processor, where `_boundaries` finds them."""
        for name in (bos, eos):
            if self._inner.token_to_id(name) is None:
                raise UserError(f"{self.name} has no token {name!r}{self._special_tokens()}")
        self._inner.add_special_tokens([bos, eos])  # which may be ordinary tokens
        ids = self._inner.get_vocab(with_added_tokens=True)
        return json.loads(self._inner.to_str()) | {"post_processor": boundary_template(ids, bos, eos)}

    def _boundaries(self, ids: dict[str, int]) -> tuple[int, int]:
        template = self._content.get("post_processor") or {}
        names = [part["SpecialToken"]["id"] for part in template.get("pair") or () if "SpecialToken" in part]
        if len(names) == 4 and set(names) <= set(ids) and template == boundary_template(ids, *names[:2]):
            return ids[names[0]], ids[names[1]]
        for begin, end in _BOUNDARIES:
            if begin in ids and end in ids:
                return ids[begin], ids[end]
        usual = ", ".join(" and ".join(dict.fromkeys(pair)) for pair in _BOUNDARIES)
        raise UserError(
            f"{self.name} has no tokens that begin and end a document (looked for {usual}): name them by --bos TOKEN "
            f"--eos TOKEN of mm data prepare or mm import (data.prepare.bos, data.prepare.eos){self._special_tokens()}"
        )

    def _special_tokens(self) -> str:
        names = [token.content for token in self._inner.get_added_tokens_decoder().values() if token.special]
        return f"; its special tokens are {', '.join(names[:20])}" if names else "; it has no special tokens"

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if self._in_pieces(texts):
            return [ids.tolist() for ids in self.encode_arrays(texts, "int32")]
        return self._encode_batch(texts)

    def encode_arrays(self, texts: Sequence[str], dtype: str) -> list[np.ndarray]:
        import numpy as np

        if not self._in_pieces(texts):
            return [np.array(ids, dtype) for ids in self._encode_batch(texts)]
        # by pieces, because encoding takes a hundred bytes of memory a character
        return [
            np.concatenate([np.array(self._encode_batch([piece])[0], dtype) for piece in pieces(text)])
            for text in texts
        ]

    def _in_pieces(self, texts: Sequence[str]) -> bool:
        return any(len(text) > PIECE for text in texts) and self._splits_at_spaces

    @functools.cached_property
    def _splits_at_spaces(self) -> bool:
        """Return whether a space behind a letter always begins a token: then long texts can be encoded in pieces."""
        added = self._inner.get_added_tokens_decoder().values()
        return not self._content.get("normalizer") and splits_words(self._content) and all(a.special for a in added)

    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        def encode() -> list[list[int]]:
            return [e.ids for e in self._inner.encode_batch_fast(list(texts), add_special_tokens=False)]

        try:
            return interruptible(encode) if sum(map(len, texts)) > _INTERRUPTIBLE else encode()
        except TypeError:
            for text in texts:
                _utf8(text)
            raise

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        known = [int(i) for i in ids if 0 <= i < self.vocab_size]
        return self._inner.decode(known, skip_special_tokens=not special)

    def text_bytes(self, counts: np.ndarray) -> int | None:
        if not keeps_bytes(self._content):
            return None
        added = self._inner.get_added_tokens_decoder()
        if any(not token.special and (token.lstrip or token.rstrip) for token in added.values()):
            return None
        sizes = [0] * len(counts)
        for text, number in self._inner.get_vocab(with_added_tokens=False).items():
            sizes[number] = len(text)  # the library writes each byte as one character
        for number, token in added.items():
            sizes[number] = 0 if token.special else len(token.content.encode())
        return sum(size * count for size, count in zip(sizes, counts.tolist(), strict=True))

    def to_json(self) -> str:
        return json.dumps(self._content, ensure_ascii=False) + "\n"


def pieces(text: str) -> Iterator[str]:
    """Yield a text in pieces of about `PIECE` characters that end behind a letter or digit and before a space."""
    start = 0
    while (space := _WORD_END.search(text, start + PIECE)) is not None:
        yield text[start : space.start()]
        start = space.start()
    yield text[start:]


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # bytes of a command line that are not UTF-8, \ud83d alone in JSON
        around = text[max(0, error.start - 20) : error.end]
        raise UserError(f"the text cannot be written in UTF-8: half a character ends {around!r}") from error


def load_tokenizer(spec: str | os.PathLike, bos: str | None = None, eos: str | None = None) -> Tokenizer:
    """Return the tokenizer that `spec` names.

    Args:
        spec: "bytes", or a `tokenizer.json`, or a folder holding one (such as a prepared data folder), or a repository
            of the Hugging Face Hub that does: ORG/NAME or ORG/NAME@REVISION.
        bos: of a `tokenizer.json`, the name of the token that begins a document, where it is none of the usual ones.
        eos: likewise of the token that ends a document. One of the two alone is both.

    Raises:
        UserError: no such file or repository, or not a usable tokenizer.
    """
    if str(spec) == "bytes":
        return _bytes(bos, eos)
    path = Path(spec).expanduser()
    of_hub = is_repository(str(spec).partition("@")[0]) and not path.exists()
    if of_hub:
        path = _download(str(spec))
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"no tokenizer at {path}: give `bytes`, a tokenizer.json, a folder that holds one, or ORG/NAME of the "
            "Hugging Face Hub, such as openai-community/gpt2"
        )
    try:
        content = read_json(path)
    except UserError as error:
        raise UserError(f"{path} is not a tokenizer.json: {error}") from error
    if content == _BYTES:
        return _bytes(bos, eos)
    return FileTokenizer(spec if of_hub else path, bos, eos, read_text(path))


def _download(name: str) -> Path:
    try:
        return download(name, "tokenizer.json")
    except OSError as error:
        raise UserError(
            f"no tokenizer at {name}, neither a file nor a folder here nor a repository of the Hugging Face Hub whose "
            f"tokenizer.json can be read: {error}"
        ) from error


def tokenizer_from_json(text: str, name: str) -> Tokenizer:
    """Return the tokenizer of a text that :meth:`Tokenizer.to_json` returned.

    Args:
        text: the content of a `tokenizer.json`.
        name: the name of the tokenizer.

    Raises:
        UserError: not a usable tokenizer.
    """
    try:
        if json.loads(text) == _BYTES:
            return ByteTokenizer()
    except ValueError as error:
        raise UserError(f"{name} is not a tokenizer.json: {error}") from error
    return FileTokenizer(name, text=text)


def _bytes(bos: str | None, eos: str | None) -> Tokenizer:
    if bos or eos:
        raise UserError(
            "bos and eos name tokens of a tokenizer.json: the tokenizer `bytes` has its own, leave them out"
        )
    return ByteTokenizer()


def _digest(content: dict) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
