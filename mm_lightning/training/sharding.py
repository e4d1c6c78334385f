"""Private names of DeepSpeed and torch.distributed, and ZeRO's engine: one documented function for each use.

Each has a test that fails when an upgrade moves the name (`tests/training/test_sharding.py`). The strategy that uses
them is in `strategies.py`, the files that ZeRO writes are read in `mm_lightning.checkpoint`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mm_lightning.networks import Network

# Parameters that ZeRO-3 partitions


def is_partitioned(parameter: Tensor) -> bool:
    """Return whether ZeRO-3 has partitioned a parameter, of which this process then holds a piece: DeepSpeed marks it
    by attributes.
    """
    return hasattr(parameter, "ds_id")


def parameter_count(module: nn.Module) -> int:
    """Return the number of all parameters; `numel()` of a partitioned one is that of this process's piece, or 0."""
    return sum(int(getattr(p, "ds_numel", p.numel())) for p in module.parameters())


def gathered(parameters: Iterable[nn.Parameter]) -> AbstractContextManager[Any]:
    """Return a context manager that gathers those of the parameters that are partitioned, to be read whole.

    All processes enter together.
    """
    partitioned = [parameter for parameter in parameters if is_partitioned(parameter)]
    if not partitioned:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(partitioned)


def whole_copy(network: Network) -> Network:
    """Return a copy of a partitioned network with whole parameters, gathered one at a time by all processes."""
    with torch.device("meta"):
        copy = network.config.build()
    weights = {}
    for name, parameter in network.state_dict(keep_vars=True).items():
        with gathered([parameter]):
            weights[name] = parameter.detach().clone()
    copy.load_state_dict(weights, assign=True)
    return copy


# Process groups


def limit_groups(limit: timedelta) -> None:
    """Set the timeout of all process groups: those that libraries make begin with torch's 10 or 30 minutes.

    Only torch's private table lists the groups.
    """
    from torch.distributed import distributed_c10d

    # its name before torch 2.15 is deprecated since
    set_group = getattr(distributed_c10d, "set_timeout", None) or distributed_c10d._set_pg_timeout
    for group in list(distributed_c10d._world.pg_map):
        set_group(limit, group)


@contextmanager
def fake_processes(devices: int) -> Iterator[None]:
    """Context manager in which this process acts as rank 0 of a number of processes, and collectives return at once.

    What other ranks would have sent is missing: reductions and gathered parameters hold this process's part alone.
    Lightning's TorchElasticEnvironment reads the environment, which is restored afterwards. The store is from the
    helpers of torch's tests.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    before = dict(os.environ)
    os.environ |= {"WORLD_SIZE": str(devices), "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "TORCHELASTIC_RUN_ID": "plan"}
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=devices)
    try:
        yield
    finally:
        destroy_process_groups()
        os.environ.clear()
        os.environ.update(before)


def destroy_process_groups() -> None:
    """End all process groups, DeepSpeed's too, which keeps a global reference to its own."""
    comm: Any = sys.modules.get("deepspeed.comm.comm")
    if comm is not None and comm.cdb is not None:
        comm.destroy_process_group()
        comm.cdb = None
    else:
        torch.distributed.destroy_process_group()


def init_on_cpu(strategy: Any) -> None:
    """Set DeepSpeed up on the CPU with gloo, instead of DeepSpeedStrategy.setup_distributed.

    That validates device indices, which mean nothing there. Gloo is enough: DeepSpeed's shared-memory collectives
    would first be compiled for a minute.
    """
    import deepspeed
    from deepspeed.accelerator import set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
    from lightning.fabric.utilities.seed import reset_seed

    accelerator = CPU_Accelerator()
    set_accelerator(accelerator)
    collectives = accelerator.create_op_builder("ShareMemCommBuilder")
    if collectives is not None:
        deepspeed.ops.__compatible_ops__[collectives.NAME] = False
    strategy._process_group_backend = "gloo"
    reset_seed()
    strategy.set_world_ranks()
    strategy._init_deepspeed_distributed()


# The engine


@contextmanager
def eager_deepspeed() -> Iterator[None]:
    """Context manager in which functions that DeepSpeed defines as compiled are not.

    Those of Muon are compiled again for further shapes, which a resumed run meets in another order: other kernels
    round differently. A CPU would need a C++ compiler, too, and a minute.
    """
    from deepspeed.runtime import compiler

    compiled, compiler.compile = compiler.compile, lambda: lambda function: function
    try:
        yield
    finally:
        compiler.compile = compiled


def write_shards_with(engine: Any, save: Callable[[Any, str], None]) -> None:
    """Let `save` write each file of a checkpoint: DeepSpeed has no option for a writer of one's own."""
    engine.checkpoint_engine.save = save


def shard_name(bf16: bool) -> str:
    """Return the name of the first process's file of optimizer states, which DeepSpeed names after the precision."""
    return f"{'bf16_' if bf16 else ''}zero_pp_rank_0_mp_rank_00_optim_states.pt"


def watch_overflow(engine: Any) -> None:
    """Let ZeRO skip updates whose gradient is not finite in every precision: stages 1 and 2 do so in fp16 only."""
    if hasattr(engine.optimizer, "check_grad_overflow"):  # stage 3 always does
        engine.optimizer.check_grad_overflow = True


def step_norm(engine: Any) -> tuple[float | Tensor, bool]:
    """Return the norm of the last step's gradient over all processes, and whether ZeRO has skipped its update (NaN)."""
    skipped = engine.optimizer.overflow
    return torch.nan if skipped else engine.get_global_grad_norm(), skipped


@contextmanager
def keep_clipping_and_scaling(engine: Any) -> Iterator[None]:
    """Context manager that restores a checkpoint and keeps this run's gradient clipping and loss scaling.

    DeepSpeed restores both with the optimizer; of the checkpoint's, only the current loss scale is taken.
    """
    optimizer = engine.optimizer
    clip, scaler = getattr(optimizer, "clip_grad", None), getattr(optimizer, "loss_scaler", None)
    yield
    if clip is not None:
        optimizer.clip_grad = clip
    if scaler is None:
        return
    if scaler.dynamic and optimizer.loss_scaler.dynamic:
        for name in ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis"):
            setattr(scaler, name, getattr(optimizer.loss_scaler, name))
    optimizer.loss_scaler, optimizer.dynamic_loss_scale = scaler, scaler.dynamic


def load_universal(engine: Any, load: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Restore the universal form of a checkpoint, which any number of processes reads, and mend what it gets wrong.

    DeepSpeed takes the form from its config, which is read when the engine is built, before the checkpoint is known.

    Args:
        engine: the engine of this run.
        load: restores the checkpoint and returns Lightning's part of it.
    """
    groups = engine.optimizer.param_groups
    before = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    engine._config.load_universal_checkpoint = True
    state = load()
    engine._config.load_universal_checkpoint = False
    # DeepSpeed gives every group the values of the first: its weight decay, too.
    rates = state["lr_schedulers"][0]["_last_lr"]
    for group, values, rate in zip(engine.optimizer.param_groups, before, rates, strict=True):
        group.update(values, lr=rate)
    # And all parameters one tensor that counts steps, which each of them would count up.
    for values in engine.optimizer.optimizer.state.values():
        if isinstance(values.get("step"), Tensor):
            values["step"] = values["step"].clone()
    return state
