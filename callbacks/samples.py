"""What the network writes by now."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from mm_lightning.callbacks.validation_rows import AfterValidation
from mm_lightning.inference.sampling import Sampling
from mm_lightning.networks import Network


class Samples(AfterValidation):
    """Continues a prompt after each validation, as TensorBoard text `samples`; Summary shows the last one.

    The same seed every time, so that samples differ by what was learned. Under ZeRO-3 every process holds a whole copy
    of the network while it lasts.

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

    def look(self, trainer: Trainer, network: Network) -> None:
        """Writes a sample."""
        from mm_lightning.inference.generate import generate

        self.last = generate(network, trainer.datamodule.tokenizer, self.prompt, self.sampling, self.tokens)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                quoted = "\n".join("    " + line for line in (self.prompt + self.last).splitlines())
                logger.experiment.add_text("samples", quoted, trainer.global_step)
