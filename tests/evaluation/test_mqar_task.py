"""Associative recall as a task, against one forward pass over each example."""

import pytest
import torch
from byte_networks import SMALL

from mm_lightning.data.mqar import recall_tokenizer
from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.errors import UserError
from mm_lightning.evaluation.model import Model
from mm_lightning.evaluation.mqar import MQAR
from mm_lightning.networks import MemoryMosaicConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    network = MemoryMosaicConfig(**{**SMALL, "vocab_size": 34}, short_term_window=8).build().eval()
    return Model(network, recall_tokenizer(tmp_path_factory.mktemp("recall") / "tokenizer.json", 32), 24, batch_size=3)


def test_scores_are_those_of_the_answers(model):
    task = MQAR(pairs=[3, 8], limit=4)
    items = task.items(model)
    assert [item.group for item in items[::4]] == [
        {"context": length, "pairs": pairs} for length, pairs in ((24, 3), (48, 3), (48, 8), (96, 3), (96, 8))
    ]
    assert len({item.key for item in items}) == len(items) == 20
    records = {record["key"]: record for record in task.ask(model, items)}
    for item in items:
        tokens, answers = item.content.tokens, item.content.answers
        with torch.inference_mode():
            log_probs = model.network(torch.tensor([[model.bos, *tokens]]))[0].log_softmax(-1)
        right = [int(log_probs[n].argmax()) == tokens[n] for n in answers]
        scores = records[item.key]["scores"]
        assert scores["accuracy"] == pytest.approx(sum(right) / len(right))
        assert scores["loss"] == pytest.approx(-sum(float(log_probs[n, tokens[n]]) for n in answers) / len(answers))
    rows = task.rows([records[item.key] for item in items])
    assert {(row.metric, row.unit) for row in rows} == {("accuracy", "share"), ("loss", "nats")}


def test_what_cannot_be_asked(model):
    with pytest.raises(UserError, match="networks trained on it"):
        MQAR().items(Model(model.network, load_tokenizer("bytes"), 64))
    with pytest.raises(UserError, match="too short"):
        MQAR(contexts=[12], pairs=[4]).items(model)
