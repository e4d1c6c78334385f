"""Estimate the memory of a training run on each device from its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.strategies import StrategyRegistry

from mm_lightning.errors import UserError
from mm_lightning.networks import Checkpointing, NetworkConfig
from mm_lightning.networks.cost import parameters
from mm_lightning.networks.loss import LOGITS
from mm_lightning.training.activation_memory import activation_bytes_per_token
from mm_lightning.training.optimizers import parameter_groups, state_elements

USABLE_FRACTION = 0.9
"""Usable fraction of a GPU's memory; the rest is for fragmentation, scratch space of kernels and NCCL's buffers."""


@dataclass(frozen=True)
class Layout:
    """Distribution of a run over devices.

    Attributes:
        devices: number of processes on all nodes.
        precision: in Lightning's notation: 32-true, bf16-mixed, bf16-true, 16-mixed, ...
        zero_stage: 0 without DeepSpeed, else the stage: 1 shards optimizer states, 2 also gradients, 3 also weights.
        deepspeed: whether DeepSpeed is used; its optimizer states include a float32 copy of the parameters.
        offload: whether the optimizer states are in host memory.
        offload_parameters: whether the weights are too (stage 3).
        bucket: DeepSpeed's `reduce_bucket_size`.
        live_parameters: DeepSpeed's `max_live_parameters` (stage 3).
        micro_batch_size: sequences of a forward pass on one device.
        context_length: tokens of a sequence.
        activation_checkpointing: whether blocks are recomputed in the backward pass, or "selective".
        moments: elements of the optimizer's states; None for AdamW's two of each parameter.
    """

    devices: int = 1
    precision: str = "32-true"
    zero_stage: int = 0
    deepspeed: bool = False
    offload: bool = False
    offload_parameters: bool = False
    bucket: int = 200_000_000
    live_parameters: int = 1_000_000_000
    micro_batch_size: int = 1
    context_length: int = 4096
    activation_checkpointing: Checkpointing = False
    moments: int | None = None


def weight_bytes(precision: str) -> int:
    """Return the bytes of a stored weight in one of Lightning's precisions."""
    return {"64-true": 8, "bf16-true": 2, "16-true": 2}.get(precision, 4)


def bytes_per_device(config: NetworkConfig, layout: Layout) -> dict[str, int]:
    """Return the bytes of a training step on each device: weights, gradients, optimizer states, activations, loss.

    Fragmentation, scratch space of kernels and NCCL's buffers are not included.
    """
    short = layout.precision.startswith(("bf16", "16"))
    true_short = short and (layout.deepspeed or layout.precision.endswith("-true"))
    number = 2 if true_short else weight_bytes(layout.precision)
    count = parameters(config)
    moments = 2 * count if layout.moments is None else layout.moments
    states = 4 * (count + moments) if layout.deepspeed else moments * number
    share = {stage: layout.devices if layout.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    tokens = layout.micro_batch_size * layout.context_length
    activations = activation_bytes_per_token(config, 2 if short else number, number, layout.activation_checkpointing)
    # stages 2 and 3 accumulate their share of the gradients in float32
    sums = 4 if layout.deepspeed and layout.zero_stage > 1 else number
    needed = {
        "weights": 0 if layout.offload_parameters else count * number // share[3],
        "gradients": count * sums // share[2],
        "optimizer states": 0 if layout.offload else states // share[1],
        "activations": activations * tokens,
        "loss": _loss_bytes(config, tokens, 2 if short else number),
    }
    if short and not true_short:
        needed["weights in 16 bits"] = count * 2  # the cache of autocast
    if layout.zero_stage == 3 and layout.devices > 1:
        needed["weights gathered for use"] = min(count, layout.live_parameters) * number
    if layout.deepspeed and layout.devices > 1:
        # stages 1 and 2 fill one bucket while another is sent; none is larger than the network
        buckets = 1 if layout.zero_stage == 3 else 2
        needed["communication buckets"] = buckets * min(count, layout.bucket) * number
    return needed


def _loss_bytes(config: NetworkConfig, tokens: int, number: int) -> int:
    """Return the bytes of the logits in memory at a time, and of the classifier's gradient."""
    logits = min(max(tokens, 1) * config.vocab_size, LOGITS)
    return logits * (4 + number) + config.vocab_size * config.dim * (4 + 2 * number)


def count_devices(devices: int | str | list[int]) -> int | None:
    """Return the number of devices in `trainer.devices` (a number, a list or `0,1`); None for auto and -1.

    Raises:
        UserError: it names no devices.
    """
    if devices in ("auto", -1, "-1"):
        return None
    if isinstance(devices, list):
        return len(devices)
    text = str(devices)
    parts = [part.strip() for part in text.removesuffix(",").split(",")]
    numbers = [int(part) for part in parts if part.isdecimal()]
    count = len(numbers) if "," in text else sum(numbers)
    if len(numbers) < len(parts) or count < 1:
        raise UserError(f"trainer.devices must be auto, -1, a number or a list of indices, got {devices!r}")
    return count


def run_layout(config: Any, network_config: NetworkConfig | None = None) -> Layout:
    """Return the layout of a resolved `mm fit` config.

    Args:
        config: of the run.
        network_config: of its network, where `config` holds that as it was parsed.

    Raises:
        UserError: the memory of its strategy is not known.
    """
    trainer, data, model = config.trainer, config.data, config.model
    # auto means 1 device on a CPU, and cannot be known for another machine
    count = count_devices(trainer.devices) or 1
    if isinstance(strategy := trainer.strategy, str):
        settings = StrategyRegistry[strategy]["init_params"] if strategy in StrategyRegistry else {}
    else:
        strategy, settings = strategy.class_path, vars(strategy.init_args)
    deepspeed = "deepspeed" in strategy.lower()
    stage = settings.get("stage", 2) if deepspeed else 0
    if "fsdp" in strategy.lower():
        raise UserError(f"memory is estimated for the strategies auto, ddp and DeepSpeed, not for {strategy}")
    with torch.device("meta"):
        network = (network_config or model.network).build()
    groups = parameter_groups(network, model.optimizer, model.weight_decay, model.parameter_groups)
    moments = state_elements(groups, model.optimizer)
    if stage in (1, 2):  # DeepSpeed's Muon has a second copy of the momentum, for steps that are skipped
        moments += sum(p.numel() for group in groups if group.get("use_muon") for p in group["params"])
    return Layout(
        devices=count * trainer.num_nodes,
        precision=str(trainer.precision or "32-true"),
        zero_stage=stage,
        deepspeed=deepspeed,
        offload=bool(settings.get("offload_optimizer")),
        offload_parameters=bool(settings.get("offload_parameters")),
        bucket=settings.get("reduce_bucket_size", Layout.bucket),
        live_parameters=settings.get("max_live_parameters", Layout.live_parameters),
        micro_batch_size=data.micro_batch_size,
        context_length=data.context_length,
        activation_checkpointing=model.activation_checkpointing,
        moments=moments,
    )
