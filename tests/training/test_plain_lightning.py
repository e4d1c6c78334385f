"""LanguageModule and TextDataModule with a Trainer of the user's own, without `mm fit`."""

from itertools import pairwise

import pytest
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

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


@pytest.mark.slow
def test_the_rate_falls_over_all_epochs(tiny):
    rates = run(tiny, max_epochs=2).rates
    steps = len(rates)
    assert rates[:3] == [0.005, 0.01, 0.01]
    assert rates[2 + (steps - 3) // 2] == pytest.approx(0.005, rel=0.15)  # half way down
    assert rates[-1] == pytest.approx(0.0001)
    assert all(b < a for a, b in pairwise(rates[2:]))
    with pytest.raises(UserError, match="max_steps or max_epochs"):
        run(tiny, max_epochs=-1)


@pytest.mark.parametrize("limit", [{"limit_train_batches": 3}, {"overfit_batches": 1}])
def test_an_epoch_never_ends_with_part_of_a_global_batch(tiny, limit):
    with pytest.raises(UserError, match=r"leaves . batches an epoch for each process, and a step takes 2 of them"):
        run(tiny, max_steps=4, **limit)


def test_whatever_would_change_the_global_batch_is_refused(tiny):
    values = yaml.safe_load(tiny.read_text())
    data, module = (
        TextDataModule(**values["data"]),
        LanguageModule(MemoryMosaicConfig(**values["model"]["network"]["init_args"]), warmup_steps=1),
    )
    quiet = {**QUIET, "default_root_dir": tiny.parent, "limit_val_batches": 0, "max_steps": 2}
    with pytest.raises(UserError, match="GradientAccumulationScheduler is not"):
        Trainer(**quiet, callbacks=[GradientAccumulationScheduler({0: 1})]).fit(module, datamodule=data)
    by_hand = TextDataModule(**values["data"])
    by_hand.setup("fit")
    with pytest.raises(UserError, match=r"global_batch_size 8 .* a step of this trainer takes 4 sequences"):
        Trainer(**quiet).fit(module, by_hand.train_dataloader())
    assert Trainer(**quiet, accumulate_grad_batches=2).fit(module, by_hand.train_dataloader()) is None
    module.automatic_optimization = False
    with pytest.raises(UserError, match="automatic optimization only: make micro_batch_size 8"):
        Trainer(**quiet).fit(module, datamodule=data)


def test_a_run_that_only_warms_up_says_so(tiny, capsys):
    run(tiny, max_steps=2)
    assert "WARNING: all 2 steps warm up" in capsys.readouterr().out


def test_lightning_does_not_divide_the_loaders_again(tiny):
    """It leaves a DistributedSampler alone, so that no user needs `use_distributed_sampler=False`."""
    data = TextDataModule(**yaml.safe_load(tiny.read_text())["data"])
    data.setup("fit")
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert not trainer._data_connector._requires_distributed_sampler(loader)
