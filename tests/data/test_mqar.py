"""Associative recall: what an example is, how its gaps are drawn, and that answers alone are predicted."""

from collections import Counter
from random import Random

import numpy as np
import pytest
import torch

from mm_lightning.cli import main
from mm_lightning.data.datamodule import TextDataModule
from mm_lightning.data.generator import generate_folder
from mm_lightning.data.mqar import MQARConfig, draw_example, recall_tokenizer
from mm_lightning.errors import UserError
from mm_lightning.memory.documents import IGNORE_INDEX


@pytest.mark.parametrize("fill", [False, True])
def test_an_example_asks_for_each_key_once(fill):
    tokens, answers = vars(draw_example(Random(1), 64, 96, 12, 0.01, fill)).values()
    assert len(tokens) == 96
    keys, values = tokens[:24:2], tokens[1:24:2]
    assert len(set(keys)) == len(set(values)) == 12
    assert all(1 <= key < 32 <= value < 64 for key, value in zip(keys, values, strict=True))
    assert answers == sorted(set(answers))
    assert all(place % 2 and place > 24 for place in answers)
    assert {tokens[place - 1]: tokens[place] for place in answers} == dict(zip(keys, values, strict=True))
    rest = [token for place, token in enumerate(tokens[24:], 24) if {place, place + 1}.isdisjoint(answers)]
    assert len(rest) == 96 - 24 - 24
    assert (len(set(rest)) > 10) if fill else set(rest) == {0}


def test_gaps_follow_the_power_law():
    """The first gap of one pair in 8 slots, against probabilities that fall as gap^(power - 1)."""
    for power in (0.01, 1.0):
        slots = [(draw_example(Random(n), 16, 18, 1, power, False).answers[0] - 3) // 2 for n in range(4000)]
        expected = np.arange(1, 9) ** (power - 1)
        shares = np.array([Counter(slots)[slot] for slot in range(8)]) / 4000
        assert np.abs(shares - expected / expected.sum()).max() < 0.03


def test_only_answers_are_predicted(tmp_path):
    config = MQARConfig(pairs=3, vocabulary=32, train_examples=9, test_examples=4)
    generate_folder(config, tmp_path / "data", 20, progress=False)
    assert main(["data", "verify", str(tmp_path / "data")]) == 0
    data = TextDataModule(tmp_path / "data", 20, 4, 4, num_workers=0)
    data.setup("validate")
    (batch,) = data.val_dataloader()
    for row, targets, example in zip(batch.tokens, batch.targets, config.examples("validation", 20), strict=True):
        assert row.tolist() == [data.tokenizer.bos, *example.tokens[:-1]]
        assert torch.nonzero(targets != IGNORE_INDEX).flatten().tolist() == example.answers
        assert targets[targets != IGNORE_INDEX].tolist() == [example.tokens[n] for n in example.answers]


def test_fewer_examples_are_the_first_of_more():
    few, more = MQARConfig(train_examples=3), MQARConfig(train_examples=5, test_examples=9)
    assert list(few.examples("train", 64)) == list(more.examples("train", 64))[:3]
    assert next(few.examples("train", 64)) != next(few.examples("validation", 64))


def test_what_does_not_fit_is_refused(tmp_path):
    for config, length in [(MQARConfig(pairs=17), 64), (MQARConfig(), 65), (MQARConfig(pairs=4, vocabulary=8), 64)]:
        with pytest.raises(UserError, match=r"mqar: .* pairs need an even context_length"):
            generate_folder(config, tmp_path / "data", length, progress=False)


def test_the_tokenizer_names_keys_and_values(tmp_path):
    tokenizer = recall_tokenizer(tmp_path / "tokenizer.json", 9)
    assert (tokenizer.vocab_size, tokenizer.bos, tokenizer.eos) == (11, 9, 10)
    assert tokenizer.encode("k1 v1 . k3 v5") == [1, 4, 0, 3, 8]
    assert tokenizer.decode([1, 4, 0, 3, 8]) == "k1 v1 . k3 v5"
