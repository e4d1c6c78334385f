"""`mm fit --plan N`: a dry run of N devices on this machine, up to the first forward pass of a tiny copy.

Everything that a run does before its first step is done by the classes that would do it, in one process that acts as
rank 0 of N. Data, batch, memory, disk and checkpoint are checked with the config as it is; then the network is replaced
by a tiny copy, with which the strategy, every callback and one forward pass are tried.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import MethodType
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor

from mm_lightning.checkpoint import check_architecture, find_checkpoint
from mm_lightning.checkpoint.network_loading import check_vocabulary
from mm_lightning.console import say
from mm_lightning.data import Batch, TextDataModule
from mm_lightning.data.manifest import FILE
from mm_lightning.data.prepare import prepare
from mm_lightning.data.prepare_config import PrepareConfig
from mm_lightning.errors import UserError
from mm_lightning.memory.documents import Documents
from mm_lightning.networks import NetworkConfig
from mm_lightning.networks.cost import parameters
from mm_lightning.training import memory_estimate
from mm_lightning.training.accumulation import accumulation_steps
from mm_lightning.training.check_config import config_errors
from mm_lightning.training.cli import TrainingCLI
from mm_lightning.training.command_options import TRAINER_DEFAULTS
from mm_lightning.training.data_preparation import MAKERS
from mm_lightning.training.lightning_internals import callbacks_of, tuner_exit, use_fake_processes
from mm_lightning.training.parse_fit import network_config_of
from mm_lightning.training.resolve_checkpoint import resolve_checkpoint
from mm_lightning.training.sharding import fake_processes
from mm_lightning.training.strategies import CHECKPOINT_BYTES

DEFAULTS: dict[str, Any] = {"max_steps": 1, "accumulate_grad_batches": 1, **TRAINER_DEFAULTS}
"""Values that replace invalid trainer options, so that `--plan` reports all mistakes at once."""

_LAYERS, _HEAD_DIM, _TOKENS = 2, 4, 256
_SIZES = "layers", "dim", "persistent_dim"


class DryRunFit(TrainingCLI):
    """An `mm fit` command line with `--plan`.

    Args:
        args: the rest of the command line.

    Raises:
        UserError: the run would not begin; it names all mistakes.
    """

    def __init__(self, args: list[str]) -> None:
        self._problems: list[str] = []
        self._layout: memory_estimate.Layout | None = None
        super().__init__("fit", args, runs=False)

    def check_values(self) -> None:
        """Collect mistakes of the trainer's options, and go on with the defaults.

        Raises:
            UserError: there are mistakes that other checks depend on; the message names all.
        """
        config, others = self.config, False
        for key, error in config_errors(config):
            self._problems.append(str(error))
            section, _, name = key.partition(".")
            if section == "trainer" and name in config.trainer and name not in ("devices", "num_nodes", "strategy"):
                config.trainer[name] = DEFAULTS.get(name)
            else:
                others = True
        if others:
            raise UserError(f"this run would not begin: {'; '.join(self._problems)}")

    def build(self) -> None:
        """Check the config, then build its classes with a tiny copy of the network."""
        config = self.config
        self._devices, self._per_node = device_counts(config)
        self._network, nodes = network_config_of(config), self._devices // self._per_node
        self._scratch = Path(tempfile.mkdtemp(prefix="mm-plan-"))
        try:
            with fake_processes(self._devices):
                say(f"plan         {self._devices} devices on {nodes} nodes; this process acts as rank 0")
                for check in (self._batch, self._data, self._memory, self._disk, self._checkpoint):
                    with self._collect_errors():
                        say(check(config))
                self._use_tiny_copy(config)
                with self._collect_errors():
                    super().build()
                    self._run_forward()
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)
        say("not checked  connections between nodes, GPUs' memory and kernels, speed of reading and saving")
        if self._problems:
            raise UserError(f"this run would not begin: {'; '.join(self._problems)}")

    # Checks of the config

    @contextlib.contextmanager
    def _collect_errors(self) -> Iterator[None]:
        """Context manager that collects a UserError instead of ending the dry run."""
        try:
            yield
        except UserError as error:
            if str(error) in self._problems:
                return
            self._problems.append(str(error))
            say(f"PROBLEM      {error}")

    def _batch(self, config: Namespace) -> str:
        data = config.data
        times = accumulation_steps(data.global_batch_size, data.micro_batch_size, self._devices, self._per_node)
        tokens = data.global_batch_size * data.context_length
        return (
            f"batch        {data.global_batch_size} sequences = {self._devices} devices x {data.micro_batch_size} x "
            f"{times} accumulated; {tokens:,} tokens a step, {tokens * max(config.trainer.max_steps, 0):,} in all"
        )

    def _data(self, config: Namespace) -> str:
        self._data_is_there = False
        values = config.data.as_dict()
        if values["global_batch_size"] % (values["micro_batch_size"] * self._devices):  # reported by _batch
            values["global_batch_size"] = values["micro_batch_size"] * self._devices
        data = TextDataModule(**values)
        makers = [name for name in MAKERS if getattr(data, name) is not None]
        if makers and not (data.path / FILE).exists():
            return f"data         {data.path} is not there yet: the run begins by making it ({makers[0]}); not checked"
        data.setup("fit")
        check_vocabulary(data.tokenizer, self._network)
        self._data_is_there = True
        lines = []
        for s in data.sets:
            count = sum(s.counts(data.context_length))
            epochs = config.trainer.max_steps * data.global_batch_size * float(s.share) / count
            part = f"{float(s.share):.1%} " if len(data.sets) > 1 else ""
            read = f"{count:,} training sequences of {data.context_length}, read {epochs:.2f} times"
            lines.append(f"data         {part}{s.folder}: {read}")
        return "\n".join(lines)

    def _memory(self, config: Namespace) -> str:
        self._layout = dataclasses.replace(memory_estimate.run_layout(config, self._network), devices=self._devices)
        parts = memory_estimate.bytes_per_device(self._network, self._layout)
        listed = ", ".join(f"{name} {count / 1e9:.1f}" for name, count in parts.items())
        total = sum(parts.values())
        size = config.gpu_memory
        if size is not None and total / 1e9 > memory_estimate.USABLE_FRACTION * size:
            raise UserError(
                f"about {total / 1e9:.1f} GB on each device ({listed}) do not fit --gpu_memory {size:g}, a tenth of "
                f"which libraries need: lower data.micro_batch_size, set model.activation_checkpointing, or choose a "
                f"higher stage of ZeRO"
            )
        return f"memory       about {total / 1e9:.1f} GB on each device ({listed})"

    def _disk(self, config: Namespace) -> str:
        run, layout = Path(config.run).absolute(), self._layout
        if layout is None:  # reported by _memory
            return "disk         not checked: the size of a checkpoint follows from the memory"
        place = next(folder for folder in (run, *run.parents) if folder.exists())
        # weights and two moments
        per_weight = CHECKPOINT_BYTES if layout.deepspeed else 3 * memory_estimate.weight_bytes(layout.precision)
        size = parameters(self._network) * per_weight
        free = shutil.disk_usage(place).free
        if free < size:
            return (
                f"WARNING      a checkpoint takes {size / 1e9:.1f} GB but {place} has {free / 1e9:.1f} GB free: "
                f"set run to a folder on a larger disk"
            )
        return f"disk         a checkpoint takes {size / 1e9:.1f} GB; {free / 1e9:.1f} GB are free for {config.run}"

    def _checkpoint(self, config: Namespace) -> str:
        path = resolve_checkpoint("fit", config)
        if path is None and config.model.initial_weights:
            path = find_checkpoint(config.model.initial_weights)
        if path is None:
            return "checkpoint   none: the run starts from new weights"
        check_architecture(path, self._network)
        return f"checkpoint   {path} fits the network; not loaded here"

    # The tiny copy

    def find_checkpoint(self, config: Namespace) -> None:
        """Return None: nothing is loaded into the tiny copy."""

    def _use_tiny_copy(self, config: Namespace) -> None:
        """Replace network, folders and devices of the config by those of the dry run."""
        tiny = tiny_copy(self._network)
        for name in _SIZES:
            config.model.network.init_args[name] = getattr(tiny, name)
        config.model.initial_weights = None
        config.resume, config.ckpt_path = False, None
        config.run = str(self._scratch / "run")
        config.trainer.accelerator = "cpu"
        config.trainer.devices, config.trainer.num_nodes = self._per_node, self._devices // self._per_node
        data = config.data
        data.num_workers = 0
        if not self._data_is_there:
            config.model.network.init_args.vocab_size = max(self._network.vocab_size, 258)
            data.context_length = min(data.context_length, _TOKENS)
            data.path = str(self._prepare_placeholder(data))
            for maker in MAKERS:
                data[maker] = None
        if self._problems:  # perhaps a wrong batch size: check the rest with a valid one
            data.global_batch_size = data.micro_batch_size * self._devices

    def _prepare_placeholder(self, data: Namespace) -> Path:
        """Prepare a folder of made-up text: as many sequences as a step needs, and some to validate with."""
        folder, text = self._scratch / "data", self._scratch / "text"
        text.mkdir()
        size = max(data.global_batch_size, data.micro_batch_size * self._devices) * (data.context_length + 1)
        for n in range(64):
            (text / f"{n}.txt").write_text("".join(f"{n} {k} " for k in range(size // 200 + 100)), encoding="utf-8")
        config = PrepareConfig([str(text)], validation_fraction=0.2, shard_tokens=1 << 24, workers=1)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            prepare(config, folder, progress=False)
        return folder

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        self._forward = FirstForward()
        trainer = super()._instantiate_trainer(config, [*callbacks, self._forward])
        use_fake_processes(trainer.strategy)
        return trainer

    def run_command(self) -> None:
        """Do nothing: all is checked while it is built."""

    def _run_forward(self) -> None:
        """Run the training up to the loss of the first micro batch."""
        trainer, data = self.trainer, self.datamodule
        # Lightning would have all processes meet, by real connections, after the data are prepared.
        data.prepare_data = MethodType(LightningDataModule.prepare_data, data)
        with contextlib.redirect_stdout(io.StringIO()):
            self.before_fit()
            trainer.fit(self.model, datamodule=data)
        config, tiny = self._network, self.model.config
        dimensions = ", ".join(f"{name} {getattr(config, name)} -> {getattr(tiny, name)}" for name in _SIZES)
        names = [type(c).__name__ for c in callbacks_of(trainer, Callback) if c is not self._forward]
        stage = f" stage {self._layout.zero_stage}" if self._layout and self._layout.zero_stage else ""
        say(f"strategy     {type(trainer.strategy).__name__}{stage}, precision {trainer.precision}: built")
        say(f"callbacks    {', '.join(names)}: set up")
        say(f"forward      one of {self._forward.tokens} tokens ({dimensions})")


class FirstForward(Callback):
    """End a run after its first forward pass, which is cut to one short sequence."""

    tokens = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Cut the batch to its first tokens."""
        starts = batch.documents.position[:1, :_TOKENS] == 0
        batch.tokens, batch.targets = batch.tokens[:1, :_TOKENS], batch.targets[:1, :_TOKENS]
        batch.documents = Documents.from_starts(starts)
        self.tokens = batch.tokens.numel()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """End the run as Lightning's tuners do, which callbacks do not handle as an error."""
        raise tuner_exit()


def device_counts(config: Namespace) -> tuple[int, int]:
    """Return the number of devices in all and on each node.

    Raises:
        UserError: `--plan` is not a whole number of nodes.
    """
    count = config.plan
    named = memory_estimate.count_devices(config.trainer.devices)
    per_node = min(count, named or max(1, count // config.trainer.num_nodes))
    if count % per_node:
        raise UserError(
            f"--plan {count} is not a whole number of nodes of trainer.devices {per_node}: take "
            f"{count // per_node * per_node} or {(count // per_node + 1) * per_node}"
        )
    return count, per_node


def tiny_copy(config: NetworkConfig) -> NetworkConfig:
    """Return the same network with 2 blocks, head dimension 4 and a persistent memory in proportion.

    It keeps all blocks where its class refuses two, as of a network with attention in every fourth.
    """
    head_dim = min(_HEAD_DIM, config.head_dim)
    persistent_dim = max(1, config.persistent_dim * head_dim // config.head_dim)
    small = dataclasses.replace(config, dim=config.heads * head_dim, persistent_dim=persistent_dim)
    try:
        return dataclasses.replace(small, layers=min(_LAYERS, config.layers))
    except UserError:
        return small
