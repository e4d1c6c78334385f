"""Tokenizers whose tokens begin with the space before a word."""

from mm_lightning.data.tokenizer import load_tokenizer

WORDS = ["the", "river", "values", "Document", "old", "5", "."]


def spaced_tokenizer(kind, folder):
    """A tokenizer whose tokens stand for words with the space before them, as SentencePiece and WordPiece have them."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    special = ["<unk>", "<s>", "</s>"]
    if kind == "wordpiece":
        names = [*special, *WORDS, *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
        inner = Tokenizer(models.WordPiece({name: n for n, name in enumerate(names)}, unk_token="<unk>"))
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    else:
        letters = "▁abcdefghijklmnopqrstuvwxyzD5.,:!"
        names = [*special, *(f"<0x{n:02X}>" for n in range(256)), *letters]
        merges = []
        for word in WORDS:
            parts = "▁" + word
            for end in range(2, len(parts) + 1):
                if parts[:end] not in names:
                    names.append(parts[:end])
                    merges.append((parts[: end - 1], parts[end - 1]))
        ids = {name: n for n, name in enumerate(names)}
        inner = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        if kind == "metaspace":
            inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
            inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
        else:
            inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
            inner.decoder = decoders.Sequence(steps)
    inner.add_special_tokens(special)
    inner.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)
