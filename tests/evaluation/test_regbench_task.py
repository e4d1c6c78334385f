"""RegBench as a task agrees with the measures over all letters at once."""

import math

import pytest
import torch

from mm_lightning.data.regbench import BETWEEN, letter_tokenizer
from mm_lightning.data.regbench_metrics import measures
from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.errors import UserError
from mm_lightning.evaluation.metrics import METRICS
from mm_lightning.evaluation.model import Model
from mm_lightning.evaluation.regbench import RegBench, ratio
from mm_lightning.networks import MemoryMosaicConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    config = MemoryMosaicConfig(vocab_size=21, layers=1, dim=16, heads=2, persistent_dim=16, short_term_window=8)
    return Model(
        config.build().eval(),
        letter_tokenizer(tmp_path_factory.mktemp("letters") / "tokenizer.json"),
        960,
        batch_size=2,
    )


def test_rows_are_the_measures_over_all_letters(model):
    task = RegBench(limit=5, seed=3)
    items = task.items(model)
    records = list(task.ask(model, items))
    rows = {(row.group["words_read"], row.metric): row for row in task.rows(records)}
    whole, first = measures(), measures()
    for sample in task.samples():
        tokens, allowed = torch.tensor([sample.tokens()]), torch.tensor([sample.allowed()])
        with torch.inference_mode():
            logits = model.network(tokens)
        whole.update(logits, allowed)
        first.update(logits, allowed.where((tokens == BETWEEN).cumsum(1) == 0, 0))
    for name in ("accuracy", "total_variation"):
        assert rows["all", name].value == pytest.approx(float(whole.compute()[name]), abs=1e-6)
        assert rows["0", name].value == pytest.approx(float(first.compute()[name]), abs=1e-6)
        assert rows["all", name].count == 5
    one = next(task.ask(model, items[3:4]))
    assert one["scores"] == pytest.approx(records[3]["scores"], abs=1e-6)
    assert one["words"] == ["".join(chr(97 + letter) for letter in word) for word in items[3].content.words]
    assert task.references()["oracle"] == pytest.approx({"accuracy": 1.0, "total_variation": 0.0})


def test_the_standard_error_of_a_ratio():
    row = ratio({}, METRICS["accuracy"], {"a": (1.0, 2), "b": (3.0, 3)}).row()
    assert row.value == pytest.approx(0.8)
    # deviations 1 - 0.8 * 2 and 3 - 0.8 * 3; n / (n - 1) = 2
    assert row.stderr == pytest.approx(math.sqrt((0.36 + 0.36) * 2) / 5)


def test_a_network_of_text_is_refused(model):
    other = Model(model.network, load_tokenizer("bytes"), 960)
    with pytest.raises(UserError, match="networks trained on it"):
        RegBench().items(other)
