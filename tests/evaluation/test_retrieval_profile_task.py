"""The retrieval profile as a task: bins, their means, and attention's own position."""

import pytest
import torch

from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.errors import UserError
from mm_lightning.evaluation.model import Model
from mm_lightning.evaluation.retrieval_profile import RetrievalProfile, binned
from mm_lightning.inspection.profile import retrieval_profile
from mm_lightning.networks import GatedDeltaNetConfig, MemoryMosaicConfig, TransformerConfig

SMALL = {"vocab_size": 258, "layers": 2, "dim": 8, "heads": 2, "persistent_dim": 8}


def test_bins_cover_every_distance_once():
    weights = torch.arange(40, dtype=torch.float64).repeat(3, 1)
    found = binned(weights)
    bounds = [tuple(map(int, place.split("-"))) for place in found]
    assert [d for low, high in bounds for d in range(low, high + 1)] == list(range(1, 40))
    assert all(found[f"{low}-{high}"] == pytest.approx([(low + high) / 2] * 3) for low, high in bounds)


@pytest.mark.parametrize(
    "config", [MemoryMosaicConfig(**SMALL, inference_delay=4, short_term_window=8), TransformerConfig(**SMALL)]
)
def test_it_is_the_profile_of_the_last_tokens(config, tmp_path):
    torch.manual_seed(0)
    text = "the quick brown fox jumps over the lazy dog again and again"
    (tmp_path / "a.txt").write_text(text)
    model = Model(config.build().eval(), load_tokenizer("bytes"), 48)
    task = RetrievalProfile(text=[str(tmp_path / "a.txt")])
    records = list(task.ask(model, task.items(model)))
    rows = task.rows(records)
    tokens = torch.tensor([[model.bos, *text.encode()[:47]]])
    mean = retrieval_profile(model.network, tokens).mean()
    for level, weights in mean.items():
        by_place = {
            row.group["distance"]: row.value for row in rows if "distance" in row.group and row.group["level"] == level
        }
        read = [n for n in range(1, 48) if weights[..., n].any()]
        assert {n for place in by_place for n in range(*map(int, place.split("-")))} <= set(read)
        assert ("1-1" in by_place) == (level != "long")  # its pairs are 4 and more tokens old
        assert ("38-44" in by_place) == (level != "short")
        first = f"{read[0]}-{read[0]}"
        assert by_place[first] == pytest.approx(float(weights[..., read[0]].mean()), abs=1e-6)
        own = [row.value for row in rows if row.group == {"context": 48, "level": level}]
        binned_rows = [row for row in rows if row.group.get("level") == level and "distance" in row.group]
        bounds = [tuple(map(int, row.group["distance"].split("-"))) for row in binned_rows]
        total = sum(row.value * (high - low + 1) for row, (low, high) in zip(binned_rows, bounds, strict=True))
        assert total + sum(own) == pytest.approx(1, abs=1e-4)
        assert bool(own) == (level == "full")


def test_several_lengths(tmp_path):
    torch.manual_seed(0)
    (tmp_path / "a.txt").write_text("one two three four five six seven eight nine")
    model = Model(MemoryMosaicConfig(**SMALL, inference_delay=4).build().eval(), load_tokenizer("bytes"))
    rows = {}
    for contexts in ([32, 16], [16], [32]):
        task = RetrievalProfile(contexts, text=[str(tmp_path / "a.txt")])
        rows[tuple(contexts)] = task.rows(list(task.ask(model, task.items(model))))
    assert rows[32, 16] == rows[16,] + rows[32,]
    assert {row.group["context"] for row in rows[16,]} == {16}
    with pytest.raises(UserError, match="begin with 2 tokens"):
        RetrievalProfile([1, 64])
    with pytest.raises(UserError, match="the training context is unknown"):
        RetrievalProfile().lengths(model)


def test_a_network_without_pairs_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("one two three four five six seven eight nine")
    model = Model(GatedDeltaNetConfig(**SMALL).build().eval(), load_tokenizer("bytes"), 32)
    with pytest.raises(UserError, match=r"GatedDeltaNet .* stores none: evaluate it without this task"):
        RetrievalProfile(text=[str(tmp_path / "a.txt")]).items(model)
