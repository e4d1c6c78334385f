"""LanguageModule and TextDataModule with a Trainer of the user's own, without `mm fit`."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import yaml
from lightning.pytorch import Callback, Trainer

from mm_lightning.data import TextDataModule
from mm_lightning.errors import UserError
from mm_lightning.networks import MemoryMosaicConfig
from mm_lightning.training.module import LanguageModule

QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
QUIET["enable_model_summary"] = False


class Rates(Callback):
    """Keeps the learning rate of each step, and the batches that it took."""

    def __init__(self):
        self.rates, self.batches = [], 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches += 1
        if len(self.rates) == trainer.global_step:
            self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def run(tiny, **settings) -> Rates:
    values = yaml.safe_load(tiny.read_text())
    network = MemoryMosaicConfig(**values["model"]["network"]["init_args"])
    data = TextDataModule(**values["data"])
    rates = Rates()
    trainer = Trainer(**QUIET, default_root_dir=tiny.parent, callbacks=[rates], limit_val_batches=0, **settings)
    trainer.fit(LanguageModule(network, learning_rate=0.01, warmup_steps=2), datamodule=data)
    return rates


def test_a_step_is_of_the_global_batch(tiny):
    """8 sequences of micro batches of 4."""
    found = run(tiny, max_steps=3)
    assert (len(found.rates), found.batches) == (3, 6)
    assert run(tiny, max_steps=1, accumulate_grad_batches=2).batches == 2
    with pytest.raises(UserError, match=r"accumulate_grad_batches=4\) is not .*leave it out"):
        run(tiny, max_steps=1, accumulate_grad_batches=4)


def test_the_rate_falls_over_all_epochs(tiny):
    rates = run(tiny, max_epochs=2).rates
    steps = len(rates)
    assert rates[:3] == [0.005, 0.01, 0.01]
    assert rates[2 + (steps - 3) // 2] == pytest.approx(0.005, rel=0.15)  # half way down
    assert rates[-1] == pytest.approx(0.0001)
    assert all(b < a for a, b in pairwise(rates[2:]))
    with pytest.raises(UserError, match="max_steps or max_epochs"):
        run(tiny, max_epochs=-1)


def test_loaders_that_lightning_would_divide_again_are_refused(tiny):
    data = TextDataModule(**yaml.safe_load(tiny.read_text())["data"])
    connector = SimpleNamespace(use_distributed_sampler=True)
    data.trainer = SimpleNamespace(_accelerator_connector=connector, global_rank=0, world_size=2)
    with pytest.raises(UserError, match="use_distributed_sampler=False"):
        data.setup("fit")
