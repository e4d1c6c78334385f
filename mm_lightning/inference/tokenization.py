"""A tokenizer of transformers that recognizes in texts only special tokens that its user adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast


class MMLightningTokenizer(PreTrainedTokenizerFast):
    """A tokenizer that encodes the trained special tokens as characters where a text spells them, but not added ones.

    With `split_special_tokens` the tokenizers library finds no token that is marked as special. Added ones are not
    marked there, and are left out here where a text is decoded without special tokens.
    """

    def _add_tokens(self, new_tokens: Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        trained = {str(self.bos_token), str(self.eos_token)}
        added = 0
        for token in new_tokens:
            if isinstance(token, str):
                token = AddedToken(token, special=special_tokens, normalized=not special_tokens)
            if str(token) in trained:
                added += super()._add_tokens([token], special_tokens=True)
            else:
                token.special = False
                added += super()._add_tokens([token])
        return added

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        if skip_special_tokens:
            special = set(self.all_special_ids)
            ids = [token_ids] if isinstance(token_ids, int) else token_ids
            token_ids = [token for token in ids if token not in special]
        return super()._decode(token_ids, skip_special_tokens, clean_up_tokenization_spaces, **kwargs)
