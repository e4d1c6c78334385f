"""Private names of Lightning and torch: one function for each use, with the reason the public API is not enough.

Those of DeepSpeed, ZeRO's engine and torch.distributed are in `sharding.py`. Each has a test that fails when an upgrade
moves the name (`tests/training/test_lightning_internals.py`, `test_sharding.py`).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import EarlyStopping
    from lightning.pytorch.cli import LightningArgumentParser
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.strategies import Strategy
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from mm_lightning.data import TextDataModule

Kind = TypeVar("Kind")

# What type checkers do not know: attributes that Lightning sets outside of the Trainer's own class


def find_datamodule(trainer: Trainer) -> TextDataModule | None:
    """Return the data module of a run; None where `fit` was given loaders."""
    return getattr(trainer, "datamodule", None)


def datamodule_of(trainer: Trainer) -> TextDataModule:
    """Return the data module of a run that has one, as every `mm` command has."""
    data = find_datamodule(trainer)
    assert data is not None, "this needs a TextDataModule: fit(..., datamodule=data)"
    return data


def callbacks_of(trainer: Trainer, kind: type[Kind]) -> list[Kind]:
    """Return the callbacks of a run that are of a class."""
    return [callback for callback in getattr(trainer, "callbacks") if isinstance(callback, kind)]  # noqa: B009


def log_interval(trainer: Trainer) -> int:
    """Return `trainer.log_every_n_steps`."""
    return getattr(trainer, "log_every_n_steps")  # noqa: B009


def parser_options(parser: LightningArgumentParser) -> list[Any]:
    """Return the options of a parser, of which there is no public list."""
    return parser._actions


def continue_tracked_run(logger: Logger, run_id: str) -> None:
    """Let a logger of W&B or MLflow go on in a run, unless its config names one.

    The id is an argument of its class, but loggers are built of the config, which config.yaml repeats for other runs.
    """
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

    if isinstance(logger, WandbLogger) and logger._id is None:
        logger._id = logger._wandb_init["id"] = run_id
    if isinstance(logger, MLFlowLogger) and logger._run_id is None:
        logger._run_id = run_id


# Tensors without storage


def fake_tensors() -> AbstractContextManager[Any]:
    """Context manager in which tensors have a device, shapes and types, but no storage.

    The public device meta is none that autocast knows.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


def intercept_operations(compute: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> AbstractContextManager[Any]:
    """Context manager in which `compute(operation, args, kwargs)` computes each of torch's operators."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Intercept(TorchDispatchMode):
        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return compute(operation, args, kwargs or {})

    return Intercept()


# Steps and batches


def accumulating(trainer: Trainer) -> bool:
    """Return whether the optimization step goes on after the present batch (in hooks before a batch: the next one).

    Lightning decides it, also at the end of an epoch; nothing public repeats the decision.
    """
    return trainer.fit_loop._should_accumulate()


def rewind(trainer: Trainer, steps: int) -> None:
    """Set the counts of optimization steps and batches back, by which Lightning ends, validates and logs.

    Public counts (`trainer.global_step`) are read-only: Lightning only restores them with a whole checkpoint, the place
    in the data included, which a return to an earlier checkpoint leaves where it is.
    """
    loop = trainer.fit_loop.epoch_loop
    loop._batches_that_stepped -= steps
    optimized = loop.automatic_optimization.optim_progress.optimizer.step.total
    for name in ("ready", "completed"):
        setattr(optimized, name, getattr(optimized, name) - steps)
    batches = loop.batch_progress.total
    for name in ("ready", "started", "processed", "completed"):
        setattr(batches, name, getattr(batches, name) - steps * trainer.accumulate_grad_batches)


def finished_epochs(trainer: Trainer) -> int:
    """Return how many epochs are over; `trainer.current_epoch` counts one more after a resume at an epoch's end."""
    current: Any = trainer.fit_loop.epoch_progress.current  # declared as the base class of its type
    return current.processed


# Validation by the clock


def validation_interval(trainer: Trainer) -> float | None:
    """Return the seconds between validations of `trainer.val_check_interval` given as a time; None for steps."""
    return getattr(trainer, "_val_check_time_interval")  # noqa: B009, set in a function that type checkers do not read


def set_validation_interval(trainer: Trainer, seconds: float) -> None:
    """Set the seconds between validations: 0 to validate after this batch, infinity not to.

    Lightning looks at each process's own clock, which makes some processes validate and others not.
    """
    trainer._val_check_time_interval = seconds  # type: ignore[attr-defined]


def since_validation(trainer: Trainer) -> float:
    """Return the seconds since the end of the last validation by this process's clock."""
    return time.monotonic() - getattr(trainer, "_last_val_time")  # noqa: B009


def checks_at_epoch_end(callback: EarlyStopping) -> bool:
    """Return whether an EarlyStopping looks at its metric at the end of an epoch rather than after validation.

    With `check_on_train_epoch_end=None` it chooses by itself.
    """
    return bool(callback._check_on_train_epoch_end)


# Processes, signals and the end of a run


def leave_signals_alone(trainer: Trainer) -> None:
    """Keep Lightning from installing signal handlers and from a broadcast before each batch.

    Its SIGTERM handler waits for other processes wherever a process is, which hangs; the broadcast waits for the
    device. There is no option to turn either off.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def kill_launched(launcher: Any) -> None:
    """Kill the processes that a strategy's launcher has started on this machine, if it starts any.

    Launchers have no public name; some of them have a method `kill`.
    """
    if hasattr(launcher, "kill"):
        launcher.kill(signal.SIGKILL)


def process_timeout(strategy: Strategy) -> timedelta | None:
    """Return how long processes wait for each other; None where a strategy has one process, and no such setting."""
    return getattr(strategy, "_timeout", None)


def set_process_timeout(strategy: Strategy, limit: timedelta) -> None:
    """Set how long processes wait for each other: a strategy takes it when it is built, the CLI knows it later."""
    if hasattr(strategy, "_timeout"):
        strategy._timeout = limit


def use_fake_processes(strategy: Strategy) -> None:
    """Let a strategy use a fake process group, which it would replace by one of the backend of its device.

    DDP would also compare its parameters with those of other processes, which are not there.
    """
    if hasattr(strategy, "_process_group_backend"):
        strategy._process_group_backend = "fake"
    if hasattr(strategy, "_ddp_kwargs"):
        strategy._ddp_kwargs["init_sync"] = False


def tuner_exit() -> Exception:
    """Return the exception by which Lightning's tuners end `fit`: the only one that is no error to callbacks."""
    from lightning.pytorch.utilities.exceptions import _TunerExitException

    return _TunerExitException()


# Optimizers and schedules


def allow_clipping(optimizer: Optimizer) -> None:
    """Let Lightning clip gradients of a fused optimizer, which it refuses where the optimizer may unscale by itself.

    Ours is never given a gradient scaler that it would have to undo.
    """
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def set_rates(scheduler: LRScheduler, rates: list[float | Tensor]) -> None:
    """Set the learning rates of a scheduler's groups for the next step, as `scheduler.step()` would.

    `get_last_lr` reads them from a private attribute that only a step writes.
    """
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


# Compilers and memory


def cpp_compilers() -> tuple[str | None, ...]:
    """Return the C++ compilers that torch.compile looks for, in order: it says that there is none when it compiles."""
    from torch._inductor import config

    return tuple(config.cpp.cxx)


def record_cuda_memory(entries: int) -> None:
    """Record up to `entries` allocations of GPU memory, 0 to stop; documented by torch for snapshots, but private."""
    torch.cuda.memory._record_memory_history(enabled="all" if entries else None, max_entries=entries)


def write_cuda_memory(path: Path) -> None:
    """Write what :func:`record_cuda_memory` has recorded, as pytorch.org/memory_viz reads it."""
    torch.cuda.memory._dump_snapshot(str(path))
