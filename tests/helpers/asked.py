"""Models that answer by rule, from the text of the prompt alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from mm_lightning.data.tokenizer import load_tokenizer

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the data sets are not in {DATA}")


class Answering:
    """Stands in for a Model: `answer` maps the text of a prompt to what is written after it."""

    def __init__(self, answer, tokenizer="bytes", batch_size=3):
        self.answer, self.batch_size = answer, batch_size
        self.tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
        self.calls = []

    @property
    def bos(self):
        return self.tokenizer.bos

    def rows_of(self, tokens):
        return self.batch_size

    def greedy(self, prompts, max_new_tokens, stop=()):
        self.calls.append((len(prompts), max_new_tokens, tuple(stop)))
        assert all(prompt[0] == self.bos and self.bos not in prompt[1:] for prompt in prompts)
        answers = [self.answer(self.tokenizer.decode(prompt[1:])) for prompt in prompts]
        return [min((answer.split(end)[0] for end in stop), key=len, default=answer) for answer in answers]


def run(task, answer, tokenizer="bytes"):
    """All records of a task and its rows, {(length, depth or None, metric): row}."""
    model = Answering(answer, tokenizer)
    items = task.items(model)
    assert len({item.key for item in items}) == len(items)
    records = list(task.ask(model, items))
    assert [record["key"] for record in records] == [item.key for item in items]
    rows = {(row.group["length"], row.group.get("depth"), row.metric): row for row in task.rows(records)}
    return records, rows
