"""Make a tokenizer from text: a byte-level BPE, or a token a character."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

from mm_lightning.console import say
from mm_lightning.data.interruptible import interruptible
from mm_lightning.data.tokenizer import BEGIN, END, FileTokenizer, Tokenizer
from mm_lightning.data.tokenizer_json import BOUNDED_WORD_SPLIT, WORD_SPLIT
from mm_lightning.errors import UserError
from mm_lightning.outputs import Output, write_text
from mm_lightning.ranges import VocabSize, accept

CHARACTERS = "chars"
MADE = "train", CHARACTERS
"""Tokenizers that a preparation makes from its own text."""


def character_tokenizer(texts: Iterable[str], path: Path) -> Tokenizer:
    """Write the tokenizer.json with a token for each character of some texts; others are left out when it encodes.

    Raises:
        UserError: there is no text.
    """
    import tokenizers

    characters: set[str] = set()
    for text in texts:
        characters |= set(text)
    if not characters:
        raise UserError("there is no text to make a tokenizer of")
    names = [*sorted(characters), BEGIN, END]
    inner = tokenizers.Tokenizer(tokenizers.models.BPE({name: number for number, name in enumerate(names)}, []))
    inner.add_special_tokens([BEGIN, END])
    inner.decoder = tokenizers.decoders.Fuse()
    write_text(path, inner.to_str(pretty=True) + "\n", exact=True)
    return FileTokenizer(path)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, output: str | os.PathLike | Output, progress: bool = True
) -> Tokenizer:
    """Train a byte-level BPE and write it as a `tokenizer.json`; the same texts always give the same file.

    Args:
        texts: whole documents (line ends and indentation are learned only from texts that contain them).
        vocab_size: entries, the 256 bytes and 2 special tokens included; fewer if the texts do not have so many.
        output: the file to write.
        progress: show log lines, and progress bars in a terminal.

    Raises:
        UserError: `vocab_size` below 258, or no text.
        KeyboardInterrupt: at once, without a file.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    accept(VocabSize, vocab_size, "vocab_size")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
        split = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
        return pre_tokenizers.Sequence([split, to_bytes])

    tokenizer.pre_tokenizer = split_by(BOUNDED_WORD_SPLIT)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=progress and sys.stderr.isatty(),  # elsewhere it is three empty lines
    )
    seen = 0
    read, interrupted = threading.Event(), threading.Event()

    def counted() -> Iterable[str]:
        nonlocal seen
        try:
            for text in texts:
                if interrupted.is_set():
                    raise KeyboardInterrupt
                seen += len(text)
                yield text
        finally:
            read.set()
        if progress:
            say(f"tokenizer: {seen:,} characters read, merging them to {vocab_size:,} entries", stderr=True)

    try:
        interruptible(lambda: tokenizer.train_from_iterator(counted(), trainer))
    except KeyboardInterrupt:
        # a thread that asks for another text while Python ends aborts the process (until Python 3.13)
        interrupted.set()
        read.wait(60)
        raise
    if not seen:
        raise UserError("there is no text to train a tokenizer on")
    tokenizer.pre_tokenizer = split_by(WORD_SPLIT)
    path = output.name if isinstance(output, Output) else Path(output)
    target = output if isinstance(output, Output) else path
    write_text(target, tokenizer.to_str(pretty=True) + "\n", exact=True)
    return FileTokenizer(path)
