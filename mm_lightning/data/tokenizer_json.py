"""Questions about the content of a `tokenizer.json`: how it splits text, whether it keeps bytes, its boundaries."""

from __future__ import annotations

from typing import Any

# Llama 3's split: contractions, words with one leading space or sign, up to three digits, signs with the line ends
# behind them, line ends with the white space before them, indentation up to the last space before a word.
WORD_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The same with pieces of bounded length, for training, whose time grows with the square of the longest piece.
BOUNDED_WORD_SPLIT = WORD_SPLIT.replace("+", "{1,256}").replace("*", "{0,256}")


def splits_words(content: dict[str, Any]) -> bool:
    """Return whether a tokenizer begins with Llama 3's split or GPT-2's and puts nothing before a text."""
    splits = content.get("pre_tokenizer") or {}
    splits = splits.get("pretokenizers", [splits])
    first, last = splits[0], splits[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return False
    if len(splits) == 1:
        return bool(last.get("use_regex"))
    words = (first.get("pattern") or {}).get("Regex") == WORD_SPLIT and first.get("behavior") == "Isolated"
    return len(splits) == 2 and first.get("type") == "Split" and words and not first.get("invert")


def keeps_bytes(content: dict[str, Any]) -> bool:
    """Return whether a tokenizer is a byte-level BPE whose tokens are the bytes of the text and nothing else."""
    from tokenizers import pre_tokenizers

    model, normalizer, splits = (content.get(key) or {} for key in ("model", "normalizer", "pre_tokenizer"))
    splits = splits.get("pretokenizers", [splits])
    plain = all(
        (split.get("type") == "ByteLevel" and not split.get("add_prefix_space"))
        or (split.get("type") in ("Split", "Digits") and split.get("behavior") != "Removed")
        for split in splits
    )
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    return (
        plain
        and not normalizer
        and any(split.get("type") == "ByteLevel" for split in splits)
        and model.get("type") == "BPE"
        and not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
        and alphabet <= set(model.get("vocab", ()))
    )


def boundary_template(ids: dict[str, int], bos: str, eos: str) -> dict[str, Any]:
    """Return the post-processor that puts `bos` and `eos` around documents, around each of a pair of documents."""

    def document(name: str) -> list[dict[str, Any]]:
        tokens = [{"SpecialToken": {"id": token, "type_id": 0}} for token in (bos, eos)]
        return [tokens[0], {"Sequence": {"id": name, "type_id": 0}}, tokens[1]]

    special = {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in (bos, eos)}
    pair = document("A") + document("B")
    return {"type": "TemplateProcessing", "single": document("A"), "pair": pair, "special_tokens": special}
