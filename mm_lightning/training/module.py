"""Training of a language model: loss, optimizer, schedule and validation (Appendix C of the v2 paper)."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from mm_lightning.checkpoint import METADATA_KEY, find_checkpoint, load_weights
from mm_lightning.checkpoint.network_loading import check_vocabulary
from mm_lightning.checkpoint.run_folder import RunFolder
from mm_lightning.console import say
from mm_lightning.data import Batch
from mm_lightning.errors import UserError
from mm_lightning.memory.documents import IGNORE_INDEX
from mm_lightning.memory.kernels import Kernels, resolve_kernels, set_kernels
from mm_lightning.networks import Checkpointing, Network, NetworkConfig
from mm_lightning.networks.block import set_compiled
from mm_lightning.ranges import Name, Natural, NonNegative, Part, Place, Range, Seed, Share, checked
from mm_lightning.renamed import rename_callback_states
from mm_lightning.training import resume
from mm_lightning.training.accumulation import check_loader, is_last_step
from mm_lightning.training.choices import Choice
from mm_lightning.training.compiler import check_strategy
from mm_lightning.training.evaluation_losses import EvaluationLosses, document_losses, metric_names
from mm_lightning.training.lightning_internals import datamodule_of, find_datamodule, log_interval
from mm_lightning.training.optimizers import (
    Decay,
    ParameterGroup,
    build_optimizer,
    check_optimizer,
    parameter_groups,
    uses_zero,
)
from mm_lightning.training.schedules import Schedule
from mm_lightning.training.sharding import parameter_count

LearningRate = Annotated[float, Range(0, 1000, above=True)]


class LanguageModule(LightningModule):
    """A network with its training recipe.

    Args:
        network: the kind of network, with its dimensions.
        learning_rate: the peak, reached after the warm-up.
        warmup_steps: optimization steps of linear warm-up from 0.
        final_learning_rate: where cosine, linear and wsd end at trainer.max_steps, as a fraction of the peak.
        weight_decay: applied to matrices; norms and scalars have none.
        betas: AdamW's decay rates of the two moments.
        optimizer: adamw, muon (for matrices of blocks, with AdamW for the rest), a class of torch.optim (sgd), or
            {class_path: SGD, init_args: {momentum: 0.9}} of one, or of a class of your own.
        schedule: after the warm-up: cosine, linear, wsd (the peak, then a decay over the last steps), constant,
            inverse_sqrt, or class_path and init_args of an LRScheduler.
        decay_steps: of the schedule wsd: the length of its decay, in steps or, below 1, as a share of
            trainer.max_steps; 0 for none.
        parameter_groups: learning-rate factors and weight decays of parameters whose names match a pattern:
            [{pattern: "embedding|classifier", learning_rate: 0.1, weight_decay: 0}].
        activation_checkpointing: recompute each block in the backward pass instead of keeping its activations (true):
            about a third more time for far less memory. Selective keeps what matrix products and reads gave, and
            recomputes the rest: a few percent more time for about two thirds of the memory.
        kernels: the kernels of keys and values: readable references, torch, numba (one pass on a CPU, compiled by
            numba), triton (on a GPU), or auto, the fastest that is there. All agree to rounding.
        compile: have torch.compile join norms, linear maps, rotations and SwiGLU of each block in training, which
            needs a C++ compiler on a CPU and takes about a minute at the start. Reads, keys and values have kernels of
            their own: changing document boundaries or m never triggers recompilation. Not for ZeRO-3.
        initial_weights: a checkpoint or run folder whose weights training begins with (fine-tuning): the step
            count, the optimizer and the data start over.
        seed: the seed of the initial weights and of the randomness of a step. Set by `seed_everything`.
    """

    network: Network
    """Built by :meth:`configure_model`."""
    optimizer_settings: resume.OptimizerSettings
    """Those of this run, before a checkpoint is restored."""
    run_folder: RunFolder
    """Set by the CLI; callbacks that write files need it."""

    @checked("model.")
    def __init__(
        self,
        network: NetworkConfig,
        learning_rate: LearningRate = 3e-4,
        warmup_steps: Natural = 2000,
        final_learning_rate: Share = 0.01,
        weight_decay: Decay = 0.1,
        betas: tuple[Part, Part] = (0.9, 0.95),
        optimizer: Choice | Name = "adamw",
        schedule: Choice | Name = "cosine",
        decay_steps: NonNegative = 0.1,
        parameter_groups: list[ParameterGroup] | None = None,
        activation_checkpointing: Checkpointing = False,
        kernels: Kernels = "auto",
        compile: bool = False,
        initial_weights: Place | None = None,
        seed: Seed = 1,
    ) -> None:
        super().__init__()
        self.config = network
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.final_learning_rate = final_learning_rate
        self.weight_decay = weight_decay
        self.betas = betas
        self.optimizer, self.schedule, self.decay_steps = Choice(optimizer), Choice(schedule), decay_steps
        self.parameter_groups = parameter_groups
        self.activation_checkpointing = activation_checkpointing
        self.kernels = kernels
        self.compiled = compile
        self.initial_weights = initial_weights
        self.seed = seed
        self.evaluation_losses = EvaluationLosses()
        self._step_loss: list[Tensor] = []
        self._step_balance: list[Tensor] = []  # where there are experts
        self._tokens = 0  # of the finished steps that are logged
        self._share = 0  # tokens of the step that this process was given
        self._stopping = False
        self._finished_steps = 0
        self._validation_open = False
        self._changed: list[str] | None = None  # settings that differ from the restored checkpoint's

    def configure_model(self) -> None:
        """Build the network on its device, partitioned from the start under ZeRO-3."""
        if hasattr(self, "network"):
            return
        # the weights depend on the seed alone, whatever drew random numbers before
        device = self.trainer.strategy.root_device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # by default, of all GPUs of the machine
            torch.manual_seed(self.seed)
            self.network = self.config.build()
        self.network.activation_checkpointing = self.activation_checkpointing
        set_kernels(self.network, self.kernels)
        resolve_kernels(self.kernels, device)  # an error at once if they cannot run there
        if self.compiled:
            check_strategy(self.trainer.strategy)
            set_compiled(self.network)
        resuming = self.trainer.state.fn == "fit" and self.trainer.ckpt_path
        if self.initial_weights and not resuming:
            path = find_checkpoint(self.initial_weights)
            load_weights(self.network, path, self.global_rank)
            say(f"weights of {path}")

    @property
    def parameter_count(self) -> int:
        """The number of all parameters, also where ZeRO-3 has partitioned them."""
        return parameter_count(self.network)

    def setup(self, stage: str) -> None:
        """Make a mean loss for each data set, and check the network's vocabulary against the data's."""
        data = find_datamodule(self.trainer)
        if stage == "fit" and self.trainer.max_steps < 1 and self.trainer.max_epochs == -1:
            raise UserError("Trainer needs max_steps or max_epochs: the learning rate falls over that many")
        if data is not None:
            self.evaluation_losses = EvaluationLosses(len(data.validated or data.sets))
            check_vocabulary(data.tokenizer, self.config)

    # Training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss to differentiate: the sum over predicted tokens, divided by all tokens of the batch.

        Dividing by a number that does not depend on the batch's documents makes the step the same however its
        global batch is split over devices and accumulation. So is the load-balancing loss of a mixture of experts,
        which is taken in each sequence by itself (:class:`mm_lightning.memory.persistent.Experts`).

        The metric train/loss is the cross-entropy alone, the mean over all predicted tokens of the global batch, as is
        that of validation; train/balance is the load-balancing loss without its weight, 1 for experts used alike.
        """
        self._rate = resume.learning_rate(self.trainer)  # of the step that is being computed
        random = self.network.step_randomness(self.seed, self.global_step)
        # From the place in the run alone, so that a resumed run drops what the uninterrupted one would have: in a
        # user's parts too, whatever they draw.
        place = f"dropout of seed {self.seed}, step {self.global_step}, {len(self._step_loss)}, {self.global_rank}"
        seed = int.from_bytes(hashlib.sha256(place.encode()).digest()[:8])
        # torch.manual_seed formats the stack for each kind of device that is not initialized, for a millisecond
        draw_from = torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed
        draw_from(seed)
        self._share = batch.targets.numel() + (self._share if self._step_loss else 0)
        loss, balance, predicted = self._losses(batch, **random)
        self._step_loss.append(torch.stack([loss.detach() * predicted, predicted]))
        if balance is not None:
            self._step_balance.append(balance.detach() * predicted)
        return self.network.total_loss(loss, balance) * predicted / batch.targets.numel()

    def _losses(self, batch: Batch, **random: Any) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return mean cross-entropy (0 where nothing is predicted), load-balancing loss and number of predictions."""
        loss, balance = self.network(batch.tokens, batch.documents, batch.targets, separate_losses=True, **random)
        predicted = (batch.targets != IGNORE_INDEX).sum()
        return loss.where(predicted > 0, 0.0), balance, predicted

    def step_sums(self) -> Tensor:
        """Return (2,) of this process's step so far: cross-entropy summed over predicted tokens, and their number."""
        return torch.stack(self._step_loss).sum(0)

    def on_fit_start(self) -> None:
        """Remember the optimizer's settings, before a checkpoint is restored."""
        self.optimizer_settings = resume.OptimizerSettings(self.trainer)

    def on_train_start(self) -> None:
        """Start counting at the step that a resumed run has reached, with its own settings; validate if it is due."""
        check_loader(self.trainer)
        if self._changed is not None:
            self.optimizer_settings.keep(self.trainer, self._changed)
        self._changed = None
        if self.warmup_steps >= (steps := self._steps()):
            warmup = f"model.warmup_steps {self.warmup_steps}"
            say(f"WARNING: all {steps:.0f} steps warm up ({warmup}): the learning rate stays below its peak")
        self.begin_step()
        if self._validation_open:
            resume.validate_if_due(self.trainer)

    @property
    def step_tokens(self) -> int:
        """The number of tokens of the last optimization step, over all processes."""
        return self._share * self.trainer.world_size

    @property
    def trained_tokens(self) -> int:
        """The number of tokens of all finished optimization steps that led to these weights."""
        finished = self.global_step != self._finished_steps  # a step that is not logged yet
        return self._tokens + (self.step_tokens if finished else 0)

    def begin_step(self) -> None:
        """Start a new optimization step with the next batch, dropping an unfinished one."""
        self._finished_steps = self.global_step
        self._step_loss, self._step_balance = [], []

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log a finished optimization step; between log steps nothing waits for the device."""
        if self.global_step == self._finished_steps:  # accumulating: a step that has begun is finished
            self._stopping = self._stopping or self.trainer.should_stop
            self.trainer.should_stop = False
            return
        self.trainer.should_stop = self.trainer.should_stop or self._stopping
        self._tokens, self._finished_steps = self.trained_tokens, self.global_step
        sums = torch.cat([self.step_sums(), *(x[None] for x in self._step_balance)])
        self._step_loss, self._step_balance = [], []
        if self.global_step % log_interval(self.trainer) == 0:
            total, tokens, *balances = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
            tokens = max(tokens, 1)  # where no token of the step is predicted, the loss is 0
            balance = {"train/balance": sum(balances) / tokens} if balances else {}
            self.log_train({"train/loss": total / tokens, **balance, "train/learning_rate": self._rate})
        if is_last_step(self.trainer):
            self.trainer.should_stop = True  # the last step is validated whatever the interval

    def log_train(self, values: dict[str, float]) -> None:
        """Log values of a training step under the number of finished steps, in float64: counts are exact."""
        metrics = {**values, "step": float(self.global_step)}
        exact = {name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}
        self.log_dict(exact, on_step=True, on_epoch=False)

    def _steps(self) -> float:
        """Return the number of steps of the run: trainer.max_steps, or those of trainer.max_epochs."""
        return self.trainer.max_steps if self.trainer.max_steps > 0 else self.trainer.estimated_stepping_batches

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build the optimizer, with weight decay on matrices only, and its schedule by steps.

        Raises:
            UserError: there is no such optimizer or schedule, or it cannot be used in this run.
        """
        check_optimizer(self.trainer, self.optimizer)
        groups = parameter_groups(self.network, self.optimizer, self.weight_decay, self.parameter_groups)
        zero = uses_zero(self.trainer)
        optimizer = build_optimizer(self.optimizer, groups, self.learning_rate, self.betas, zero)
        # the steps are not known before the loaders exist, which a resume must precede
        rates = (self.learning_rate, self.warmup_steps, self.final_learning_rate, self.decay_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, Schedule(self.schedule, *rates, self._steps).factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Evaluation

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the mean loss over tokens of its data set."""
        loss, _, predicted = self._losses(batch)
        self.evaluation_losses.add(dataloader_idx, loss, predicted)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log loss, perplexity and bits per byte over all ranks: weighted means of data sets, and the loss of each."""
        split = "test" if self.trainer.testing else "validation"
        metrics = self.evaluation_losses.compute(find_datamodule(self.trainer))
        values = {f"{split}/{name}": value for name, value in metrics.items()}
        self.log_dict({**values, "step": float(self.global_step)}, sync_dist=True)

    on_test_epoch_end = on_validation_epoch_end

    @property
    def validation_metrics(self) -> list[str]:
        """The metrics that validation logs, which callbacks may monitor."""
        return [f"validation/{name}" for name in metric_names(find_datamodule(self.trainer))]

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Return the loss of each document (:func:`document_losses`), with its data set if there are several."""
        data = datamodule_of(self.trainer)
        logits = self.network(batch.tokens, batch.documents)
        losses = document_losses(batch, logits, data.tokenizer, batch_idx * data.micro_batch_size)
        names = {"set": data.validated[dataloader_idx].name} if len(data.validated) > 1 else {}
        return [{**names, **document} for document in losses]

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the metadata from which the network is rebuilt without its YAML."""
        checkpoint[METADATA_KEY] = resume.checkpoint_metadata(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare settings with the checkpoint's, and convert its progress to the accumulation of this run.

        Raises:
            UserError: the data have another tokenizer.
        """
        rename_callback_states(checkpoint.get("callbacks", {}))
        self._changed = []
        if METADATA_KEY in checkpoint:
            data = find_datamodule(self.trainer)
            self._changed = resume.changed_recipe(checkpoint, self)
            if data is not None and (warning := resume.data_changes(checkpoint[METADATA_KEY], data)):
                say(warning)
        self.restore_tokens(checkpoint)
        self._validation_open = resume.rescale_progress(checkpoint, self.trainer.accumulate_grad_batches)

    def restore_tokens(self, checkpoint: dict[str, Any]) -> None:
        """Take the count of tokens from a checkpoint; those of earlier versions had steps of one size."""
        self._tokens = resume.saved_tokens(checkpoint, find_datamodule(self.trainer))
