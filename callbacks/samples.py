"""Sample text from the network during training."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from mm_lightning.callbacks.after_validation import AfterValidation
from mm_lightning.data import TextDataModule
from mm_lightning.data.shards import read_shard, unmarked
from mm_lightning.inference.generate_commands import generate_line
from mm_lightning.inference.sampling import Sampling
from mm_lightning.networks import Network
from mm_lightning.ranges import Count, Portion, Seed, Temperature, Text, checked
from mm_lightning.training.evaluation_mode import evaluation_mode
from mm_lightning.training.lightning_internals import datamodule_of
from mm_lightning.training.loggers import tensorboard_tag, tensorboards
from mm_lightning.training.module import LanguageModule

BEGINNING = 16
"""Tokens of the prompt that is taken from the data."""


def beginning(data: TextDataModule) -> str:
    """Return the beginning of the first validation document, or of the first document where there is none."""
    split = "validation" if data.validated else "train"
    chosen = (data.validated or data.sets)[0]
    shard = chosen.split(split).shards[0]
    stored = read_shard(chosen.folder / split / shard.file, chosen.manifest.dtype, shard.tokens)
    _, *tokens = unmarked(stored[: BEGINNING + 1]).tolist()
    ends = [n for n, token in enumerate(tokens) if token in (data.tokenizer.bos, data.tokenizer.eos)]
    return data.tokenizer.decode(tokens[: min(ends, default=BEGINNING)])


class Samples(AfterValidation):
    """Continue a prompt after each validation and at the end, as TensorBoard text `watch_samples`; Summary shows the
    last sample and the command that generates it again. Further callbacks of this kind write `watch_samples/2` and so
    on.

    The seed is the same every time: samples differ by what was learned. Under ZeRO-3 every process holds a whole copy
    of the network during sampling.

    Args:
        prompt: the text to continue; empty to begin a document. By default the first 16 tokens of the data's first
            validation document.
        tokens: number of tokens to sample.
        temperature: the temperature of sampling; 0 takes the most probable token.
        top_k: sample from the k most probable tokens only.
        top_p: sample from the fewest tokens that have this probability together.
        seed: the seed of sampling.
    """

    @checked()
    def __init__(
        self,
        prompt: Text | None = None,
        tokens: Count = 64,
        temperature: Temperature = 0.8,
        top_k: Count | None = 50,
        top_p: Portion | None = None,
        seed: Seed = 1,
    ) -> None:
        self.prompt = prompt
        self.tokens = tokens
        self.sampling = Sampling(temperature, top_k, top_p, seed=seed)
        self.last: str | None = None
        self._step = -1  # of the last sample

    def on_validation_end(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Sample after validation, with the other callbacks that inspect the network then."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._step = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Sample from the final network, unless that was done after the validation of the last step."""
        if self._step != trainer.global_step:
            with evaluation_mode(trainer, pl_module) as network:
                if trainer.is_global_zero:
                    self.inspect(trainer, network)

    def command(self, checkpoint: str | Path) -> str:
        """Return the command line that generates the last sample again."""
        return generate_line(checkpoint, self.prompt or "", self.sampling, self.tokens)

    def inspect(self, trainer: Trainer, network: Network) -> None:
        """Log a sample, computed as `mm generate` does, whatever the precision of the training."""
        from mm_lightning.inference.generate import generate, inference_on

        data = datamodule_of(trainer)
        if self.prompt is None:
            self.prompt = beginning(data)
        device = next(network.parameters()).device
        if device.type == "cpu" and any(p.dtype != torch.float32 for p in network.parameters()):
            network = copy.deepcopy(network).float()
        with inference_on(device):
            self.last = generate(network, data.tokenizer, self.prompt, self.sampling, self.tokens)
        quoted = "\n".join("    " + line for line in (self.prompt + self.last).splitlines())
        for board in tensorboards(trainer):
            board.add_text(tensorboard_tag(self.unique_tag("samples", trainer)), quoted, trainer.global_step)
