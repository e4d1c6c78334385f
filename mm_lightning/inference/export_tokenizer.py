"""Convert a tokenizer for transformers: the same ids, BOS prepended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mm_lightning.data.tokenizer import BEGIN, END, ByteTokenizer, Tokenizer
from mm_lightning.errors import UserError

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

_SAMPLES = ("", "Hello, world!\n\n  x = 12 # é ☃", "a <|end_of_text|> </s> b")


def transformers_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Return a tokenizer of transformers, which AutoTokenizer loads after its `save_pretrained`.

    It prepends `bos`, pads left with `eos`, and like ours encodes the name of a special token in a text as characters.
    Special tokens that `add_special_tokens` adds later are recognized in texts.

    Raises:
        UserError: it gives other ids.
    """
    from tokenizers import processors

    from mm_lightning.inference.tokenization import MMLightningTokenizer

    inner = _inner(tokenizer)
    begin, end = inner.id_to_token(tokenizer.bos), inner.id_to_token(tokenizer.eos)
    inner.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1", special_tokens=[(begin, tokenizer.bos)]
    )
    converted = MMLightningTokenizer(
        tokenizer_object=inner,
        bos_token=begin,
        eos_token=end,
        pad_token=end,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )
    for text in _SAMPLES:
        if converted(text)["input_ids"] != [tokenizer.bos, *tokenizer.encode(text)]:
            raise UserError(f"transformers cannot express the tokenizer {tokenizer.name}: {text!r} gives other ids")
    return converted


def _inner(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    import tokenizers

    if isinstance(tokenizer, ByteTokenizer):
        return _bytes()
    return tokenizers.Tokenizer.from_str(tokenizer.to_json())


def _bytes() -> tokenizers.Tokenizer:
    """Return the byte tokenizer as a byte-level BPE without merges, whose ids are the byte values."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    # The library writes bytes as characters: printable ones as themselves, the others as those from U+0100 on.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    vocabulary = {chr(byte if byte in printable else 256 + others.index(byte)): byte for byte in range(256)}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([BEGIN, END])
    return inner
