"""What the network writes by now."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DeepSpeedStrategy

from mm_lightning.inference.sampling import Sampling


class Samples(Callback):
    """Continues a prompt after each validation, as TensorBoard text `samples`; Summary shows the last one.

    The same seed every time, so that samples differ by what was learned. Under ZeRO-3, where no device holds the
    network, there are no samples and the log says so.

    Args:
        prompt: what to continue.
        tokens: how many tokens to write.
        temperature: of sampling; 0 takes the most probable token.
        top_k: sample from the k most probable tokens only.
        top_p: sample from the fewest tokens that have this probability together.
        seed: of sampling.
    """

    def __init__(
        self,
        prompt: str,
        tokens: int = 64,
        temperature: float = 0.8,
        top_k: int | None = 50,
        top_p: float | None = None,
        seed: int = 1,
    ) -> None:
        self.prompt = prompt
        self.tokens = tokens
        self.sampling = Sampling(temperature, top_k, top_p, seed=seed)
        self.last: str | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says so where it cannot be done."""
        from mm_lightning.training.loggers import say

        if self._partitioned(trainer):
            say("no samples under ZeRO-3: use `mm generate` on a checkpoint")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Samples on the first process."""
        if trainer.sanity_checking or not trainer.is_global_zero or self._partitioned(trainer):
            return
        if trainer.state.fn != "fit":
            return
        from mm_lightning.inference.generate import generate

        network, tokenizer = pl_module.network, trainer.datamodule.tokenizer
        training = network.training
        network.eval()
        try:
            with trainer.precision_plugin.forward_context():
                self.last = generate(network, tokenizer, self.prompt, self.sampling, self.tokens)
        finally:
            network.train(training)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                quoted = "\n".join("    " + line for line in (self.prompt + self.last).splitlines())
                logger.experiment.add_text("samples", quoted, trainer.global_step)

    @staticmethod
    def _partitioned(trainer: Trainer) -> bool:
        return isinstance(trainer.strategy, DeepSpeedStrategy) and trainer.strategy.zero_stage_3
