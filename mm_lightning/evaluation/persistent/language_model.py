"""A network as lm-evaluation-harness wants it: text in, log-likelihoods and answers out.

    lm = LanguageModel(Model.load("runs/mine"))
    lm_eval.simple_evaluate(lm, tasks=["lambada_openai"])

Every text is a document: it begins with the token that begins documents, also where its beginning is cut off.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from mm_lightning.errors import UserError
from mm_lightning.evaluation.likelihoods import Choices, likelihoods
from mm_lightning.evaluation.model import Model

if TYPE_CHECKING:
    from mm_lightning.inference.reader import Reader

NEW_TOKENS = 256
"""Tokens of an answer at most where a task states none, as in the harness."""
SHARED_TOKENS = 64
"""From so many tokens on, what all contexts begin with is read by itself, and once."""

Tokens = list[int]


class LanguageModel(TemplateLM):
    """A network for the harness.

    Args:
        model: the network.
        max_length: tokens that are read at most: of longer texts the beginning is cut off. None for the network's
            training context, 0 for no limit.
    """

    def __init__(self, model: Model, max_length: int | None = None) -> None:
        super().__init__()
        if max_length is not None and max_length < 0:
            raise UserError(f"max_length must be at least 0, got {max_length}")
        self.model = model
        self.limit = (model.context_length if max_length is None else max_length) or None
        self._beginning: Reader | None = None
        self._joined: set[str | None] = set()  # tasks that were warned about

    @property
    def eot_token_id(self) -> int:
        return self.model.eos

    @property
    def prefix_token_id(self) -> int:
        return self.model.bos

    @property
    def tokenizer_name(self) -> str:
        return self.model.tokenizer.sha256

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> Tokens:
        """Return the tokens of a text, after the one that begins a document unless `add_special_tokens` is False."""
        tokens = self.model.encode(string)
        return tokens if add_special_tokens is False else [self.model.bos, *tokens]

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return log p of each continuation after its context, and whether greedy decoding would write it.

        A continuation without a token of its own, because it is empty or the tokenizer joins it with the context, has
        log p 0, as for the harness' own models.
        """
        pairs = [(request.args, *self._encode_pair(*request.args)) for request in requests]
        for request, (_, _, continuation) in zip(requests, pairs, strict=True):
            if not continuation and request.task_name not in self._joined:
                self._joined.add(request.task_name)
                logging.getLogger(__name__).warning(
                    "%s: the tokenizer has no token for %r after its context, which counts as log p = 0 (further ones "
                    "are not named)",
                    _place(request),
                    request.args[1][:40],
                )
        return self._loglikelihood_tokens(pairs)

    def _encode_pair(self, context: str, continuation: str) -> tuple[Tokens, Tokens]:
        """Return the tokens of a context and of its continuation, to which white space at the context's end belongs."""
        if context:
            return super()._encode_pair(context, continuation)
        return [self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str] | None, Tokens, Tokens]], **_: Any
    ) -> list[tuple[float, bool]]:
        by_context: dict[tuple[int, ...], list[int]] = {}
        for number, (_text, context, continuation) in enumerate(requests):
            if continuation:
                by_context.setdefault(tuple(self._cut(context, len(continuation) - 1)), []).append(number)
        questions = [
            Choices(list(context), [requests[number][2] for number in numbers])
            for context, numbers in by_context.items()
        ]
        scores: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        beginning = self._common([list(context) for context in by_context])
        answers = likelihoods(self.model, questions, beginning)
        for numbers, several in zip(by_context.values(), answers, strict=True):
            for number, likelihood in zip(numbers, several, strict=True):
                scores[number] = likelihood.log_prob, likelihood.greedy
        for (text, _context, _continuation), answer in zip(requests, scores, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return scores

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts, in windows of `max_length` of which each token is predicted once."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            length = self.limit or max(1, len(tokens))
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, length, 1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (log_prob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += log_prob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return greedy answers, each up to the first of its `until` strings.

        Raises:
            UserError: a task asks for sampling or beams; the error names it.
        """
        answers = [""] * len(requests)
        by_settings: dict[tuple[tuple[str, ...], int], list[int]] = {}
        for number, request in enumerate(requests):
            by_settings.setdefault(_settings(request), []).append(number)
        for (stop, new_tokens), numbers in by_settings.items():
            if not new_tokens:
                continue
            prompts = [self._cut(self.tok_encode(requests[number].args[0]), new_tokens) for number in numbers]
            for number, answer in zip(numbers, self.model.greedy(prompts, new_tokens, stop), strict=True):
                answers[number] = answer
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return answers

    def tokens_cut(self, request: Instance) -> int:
        """Return the number of tokens of a request's prompt that are cut off."""
        if self.limit is None or request.request_type == "loglikelihood_rolling":
            return 0
        if request.request_type == "generate_until":
            context, more = self.tok_encode(request.args[0]), _settings(request)[1]
        else:
            context, continuation = self._encode_pair(*request.args)
            more = max(0, len(continuation) - 1)
        return len(context) - len(self._cut(context, more))

    def _cut(self, context: Tokens, more: int) -> Tokens:
        """Return a context that leaves room for so many tokens, but half of the limit is its own."""
        room = len(context) if self.limit is None else max(self.limit - more, self.limit // 2, 1)
        return context if len(context) <= room else [*context[:1], *context[len(context) - room + 1 :]]

    def _common(self, contexts: list[Tokens]) -> Reader | None:
        """Return the reader of the tokens that all contexts begin with, or None if these are few.

        It is read once and used for as long as contexts begin with it.
        """
        if len(contexts) < 2:
            return None
        low, high = min(contexts), max(contexts)
        length = next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
        length = min(length, len(low) - 1, *(len(context) - 1 for context in contexts))
        if length < SHARED_TOKENS:
            return None
        if self._beginning is None or not _begins(low[:length], self._beginning.documents[0], SHARED_TOKENS):
            self._beginning = self.model.prefill(low[:length])
        return self._beginning


def _begins(tokens: Tokens, with_: Tokens, least: int) -> bool:
    """Return whether tokens begin with what was read, which is most of what they could share."""
    return tokens[: len(with_)] == with_ and len(tokens) - len(with_) < least


def _settings(request: Instance) -> tuple[tuple[str, ...], int]:
    """Return the strings that end an answer and its largest number of tokens, read as the harness reads them.

    Raises:
        UserError: the task asks for sampling or beams, or a setting means nothing; the error names the task.
    """
    arguments = request.args[1]
    try:
        settings: dict[str, Any] = dict(normalize_gen_kwargs(arguments, NEW_TOKENS))
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{_place(request)}: generation_kwargs {arguments} cannot be read ({error})") from error
    if settings["do_sample"] or (settings.get("num_beams") or 1) != 1:
        raise UserError(
            f"{_place(request)}: only greedy answers are written, its generation_kwargs are {arguments}: set do_sample "
            "to false and leave num_beams out"
        )
    stop = tuple(text for text in settings["until"] if text)
    if settings["max_gen_toks"] < 0 or not all(isinstance(text, str) for text in stop):
        raise UserError(
            f"{_place(request)}: generation_kwargs need max_gen_toks of at least 0 and texts in until, got {arguments}"
        )
    return stop, settings["max_gen_toks"]


def _place(request: Instance) -> str:
    """Return the task and document of a request in words, for messages."""
    if request.task_name is None:
        return "a request"
    return f"{request.task_name}, document {(request.doc_id or 0) + 1}"
