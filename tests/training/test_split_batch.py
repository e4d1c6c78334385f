"""A step does not depend on how its global batch is split into micro batches, nor its metrics."""

from types import SimpleNamespace

import pytest
import torch
from runs import metrics

from mm_lightning.cli import main
from mm_lightning.data import Batch
from mm_lightning.memory.documents import IGNORE_INDEX, Documents
from mm_lightning.networks import MemoryMosaicConfig, TransformerConfig
from mm_lightning.training.module import LanguageModule

SMALL = {"vocab_size": 31, "layers": 2, "dim": 16, "heads": 2, "persistent_dim": 24}
EXPERTS = MemoryMosaicConfig(**SMALL, persistent="experts", experts=4, balance_weight=3.0)
NETWORKS = [EXPERTS, MemoryMosaicConfig(**SMALL), TransformerConfig(**SMALL)]


def batch(predicted: list[int]) -> Batch:
    """Rows of 12 tokens, of which so many are predicted."""
    draw = torch.Generator().manual_seed(0)
    tokens, targets = torch.randint(31, (2, len(predicted), 12), generator=draw)
    targets[torch.arange(12) >= torch.tensor(predicted)[:, None]] = IGNORE_INDEX
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    starts[:, 5] = True
    return Batch(tokens, targets, Documents.from_starts(starts))


def step(config, whole: Batch, size: int) -> tuple[list, list]:
    """Gradients of a step in micro batches of so many rows, and the mean of each metric's sums."""
    module = LanguageModule(config)
    torch.manual_seed(0)
    module.network = config.build().double()
    parts = range(0, len(whole), size)
    for at in parts:
        rows = slice(at, at + size)
        starts = whole.documents.position[rows] == 0
        part = Batch(whole.tokens[rows], whole.targets[rows], Documents.from_starts(starts))
        (module.training_step(part, 0) / len(parts)).backward()
    total, tokens = module.step_sums()
    balance = sum(module._step_balance, torch.zeros(())) / tokens
    return [p.grad for p in module.network.parameters()], [float(total / tokens), float(balance)]


@pytest.mark.parametrize("predicted", [[12, 7, 3, 12], [12, 0, 3, 1]])
@pytest.mark.parametrize("config", NETWORKS, ids=["experts", "v2", "transformer"])
def test_a_step_is_the_same_however_its_batch_is_split(config, predicted, monkeypatch):
    group = {"lr": 0.1}
    trainer = SimpleNamespace(global_step=0, optimizers=[SimpleNamespace(param_groups=[group])])
    monkeypatch.setattr(LanguageModule, "trainer", trainer)
    whole = batch(predicted)
    expected, values = step(config, whole, 4)
    for size in (1, 2):
        gradients, others = step(config, whole, size)
        assert others == pytest.approx(values, rel=1e-9)
        assert all(g.isfinite().all() for g in gradients)
        assert max((a - b).abs().max() / b.abs().max() for a, b in zip(gradients, expected, strict=True)) < 1e-9
    torch.manual_seed(0)
    network = config.build().double().eval()
    logits = network(whole.tokens, whole.documents).flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, whole.targets.flatten(), ignore_index=IGNORE_INDEX)
    assert values[0] == pytest.approx(float(loss.detach()), rel=1e-9)  # without the load-balancing loss
    assert (0.9 < values[1] <= 4) == (config is EXPERTS)


def test_the_metrics_of_experts(tiny, tmp_path):
    """Cross-entropy near that of a new network, whatever the weight of the load-balancing loss."""
    more = {"persistent": "experts", "experts": 4, "balance_weight": 50}
    args = [x for name, value in more.items() for x in (f"--model.network.{name}", str(value))]
    assert main(["fit", "--config", str(tiny), *args, "--trainer.max_steps", "3"]) == 0
    run = tmp_path / "run" / "0"
    loss, balance = metrics(run), metrics(run, "train/balance")
    assert set(loss) == set(balance) == {1, 2, 3}
    assert 4.5 < loss[1] < 6.5
    assert all(0.9 < x <= 4 for x in balance.values())
    assert 4 < metrics(run, "validation/loss")[3] < 6.5
