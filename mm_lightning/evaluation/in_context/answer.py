"""Ask a network: demonstrations once, then every question on top of them, then every label on top of the question."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from mm_lightning.evaluation.in_context.prompts import digest, encode_after
from mm_lightning.evaluation.in_context.scoring import Shared, Tree, log_likelihoods
from mm_lightning.evaluation.model import GREEDY
from mm_lightning.inference.generate import collect, write

if TYPE_CHECKING:
    from mm_lightning.evaluation.in_context.prompts import Style
    from mm_lightning.evaluation.model import Model
    from mm_lightning.evaluation.task import Item, Record

CUT = 64
"""Characters before a text that decide how it is cut into tokens."""

ANSWER_TOKENS = 24
"""Tokens that greedy decoding may write; more where a label is longer."""


def ask_style(model: Model, style: Style, items: list[Item]) -> Iterator[Record]:
    """Answers to questions whose prompts are written in one way.

    Args:
        model: who is asked.
        style: of the prompts.
        items: their group has shots and seed, their content the number of the test example and whether the record is
            to show the demonstrations.
    """
    test, names = style.dataset.test, style.names
    lead = style.query(test[items[0].content[0]])[-CUT:]
    answers = encode_after(model.tokenizer, lead, style.answers)
    longest = max(map(len, answers))
    questions = model.tokenizer.encode_batch([style.query(test[item.content[0]]) for item in items])
    room = max(map(len, questions)) + max(longest, ANSWER_TOKENS) + 1
    tree, lengths = Tree.of(answers), torch.tensor([len(tokens) for tokens in answers])
    shared = Shared(model, room)
    by_set: dict[tuple[int, int], list[Item]] = {}
    for item in items:
        by_set.setdefault((item.group["seed"], item.group["shots"]), []).append(item)
    for (seed, shots), group in sorted(by_set.items()):
        before = style.demonstrations(shots, seed)
        tokens = [model.bos, *model.encode(before)]
        shared.read(tokens)
        queries = [style.query(test[item.content[0]]) for item in group]
        encoded = encode_after(model.tokenizer, before[-CUT:], queries)
        for batch, reader in shared.batches(encoded):
            with model.computing():
                scores = log_likelihoods(reader, tree, len(answers), model.batch_size).cpu()
                written = write(reader, model.tokenizer, GREEDY, max(longest, ANSWER_TOKENS), [style.terminator])
                texts = collect(written, len(batch))
            for place, text, of_labels in zip(batch, texts, scores, strict=True):
                item = group[place]
                right = names[test[item.content[0]].label]
                likely, by_length = (list(names.values())[int(x.argmax())] for x in (of_labels, of_labels / lengths))
                answer = text.strip()
                hits = {
                    "greedy": answer == right,
                    "inside": answer in names.values(),
                    "likelihood": likely == right,
                    "likelihood_by_length": by_length == right,
                }
                shown = {"before": before} if item.content[1] else {}
                yield item.record(
                    hits,
                    **shown,
                    demonstrations=digest(before),
                    demonstration_tokens=len(tokens),
                    prompt_tokens=len(tokens) + len(encoded[place]),
                    prompt=queries[place],
                    references=[right],
                    answer=text,
                    likely=likely,
                    likely_by_length=by_length,
                    log_likelihoods=[round(x, 5) for x in of_labels.tolist()],
                )
