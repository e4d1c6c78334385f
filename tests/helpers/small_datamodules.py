"""Small data modules, what their loaders serve, and a module that records what it is given."""

import lightning
import torch

from mm_lightning.data.datamodule import TextDataModule
from mm_lightning.data.manifest import Manifest
from mm_lightning.data.shards import read_shard

SMALL = {"context_length": 32, "global_batch_size": 8, "micro_batch_size": 4, "num_workers": 0}


def module(folder, **settings):
    made = TextDataModule(str(folder), **{**SMALL, **settings})
    made.prepare_data()
    made.setup("fit")
    return made


def rows(loader):
    return [tuple(row) for batch in loader for row in batch.tokens.tolist()]


def blocks(folder, split, length):
    """The sequences of a split, read without litdata."""
    manifest = Manifest.load(folder)
    out = []
    for shard in manifest.splits[split].shards:
        tokens = read_shard(folder / split / shard.file, manifest.dtype, shard.tokens).astype(int)
        out += tokens[: len(tokens) // length * length].reshape(-1, length).tolist()
    return [tuple(block) for block in out]


class Recorder(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append(batch.tokens.tolist())
        return 0 * self.weight.sum()

    def validation_step(self, batch, _):
        assert len(batch)

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class SaveAt(lightning.Callback):
    def __init__(self, folder, steps):
        self.folder, self.steps = folder, steps

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step in self.steps and trainer.fit_loop.epoch_loop.batch_progress.current.ready % 2 == 0:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def trainer(**settings):
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return lightning.Trainer(accelerator="cpu", **quiet, **settings)
