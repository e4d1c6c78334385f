"""How many bytes a training run needs on each device, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mm_lightning.errors import UserError
from mm_lightning.networks import Checkpointing, NetworkConfig
from mm_lightning.networks.cost import activation_bytes_per_token, parameters
from mm_lightning.networks.loss import LOGITS

USABLE_FRACTION = 0.9
"""A tenth of a GPU's memory is left to what nobody counts: fragmentation, kernels' scratch space, NCCL's buffers."""


@dataclass(frozen=True)
class Layout:
    """How a run is spread over devices.

    Attributes:
        devices: processes in all, over all nodes.
        precision: Lightning's name: 32-true, bf16-mixed, bf16-true, 16-mixed, ...
        zero_stage: 0 without DeepSpeed; with it, what is partitioned: 1 optimizer states, 2 gradients too, 3 parameters
            too.
        deepspeed: whether DeepSpeed runs it; it keeps a float32 copy of the parameters among the optimizer states.
        offload: whether the optimizer states are kept in the host's memory.
        offload_parameters: whether the weights are too (stage 3).
        bucket: gradients that are reduced together, where DeepSpeed does it.
        live_parameters: the most that stage 3 gathers at a time.
        micro_batch_size: sequences of one forward pass on one device.
        context_length: tokens of a sequence.
        activation_checkpointing: whether blocks are recomputed in the backward pass, or selective.
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


def weight_bytes(precision: str) -> int:
    """Return the bytes of a stored weight in one of Lightning's precisions."""
    return {"64-true": 8, "bf16-true": 2, "16-true": 2}.get(precision, 4)


def bytes_per_device(config: NetworkConfig, layout: Layout) -> dict[str, int]:
    """Bytes on each device of a training step: weights, gradients, optimizer states (AdamW), activations, the loss.

    What a framework adds (fragmentation, kernels' scratch space, NCCL's buffers) is not in it.
    """
    short = layout.precision.startswith(("bf16", "16"))
    true_short = short and (layout.deepspeed or layout.precision.endswith("-true"))
    number = 2 if true_short else weight_bytes(layout.precision)
    states = 12 if layout.deepspeed else 2 * number
    count = parameters(config)
    share = {stage: layout.devices if layout.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    tokens = layout.micro_batch_size * layout.context_length
    activations = activation_bytes_per_token(config, 2 if short else number, number, layout.activation_checkpointing)
    # stages 2 and 3 add up their share of the gradients in float32
    sums = 4 if layout.deepspeed and layout.zero_stage > 1 else number
    needed = {
        "weights": 0 if layout.offload_parameters else count * number // share[3],
        "gradients": count * sums // share[2],
        "optimizer states": 0 if layout.offload else count * states // share[1],
        "activations": activations * tokens,
        "loss": _loss_bytes(config, tokens, 2 if short else number),
    }
    if short and not true_short:
        needed["weights in 16 bits"] = count * 2  # which autocast keeps
    if layout.zero_stage == 3 and layout.devices > 1:
        needed["weights gathered for use"] = min(count, layout.live_parameters) * number
    if layout.deepspeed and layout.devices > 1:
        # Stages 1 and 2 fill one bucket while they send another; none is larger than the network.
        buckets = 1 if layout.zero_stage == 3 else 2
        needed["communication buckets"] = buckets * min(count, layout.bucket) * number
    return needed


def _loss_bytes(config: NetworkConfig, tokens: int, number: int) -> int:
    """Of the logits that exist at a time, and of the classifier's gradient beside them."""
    logits = min(max(tokens, 1) * config.vocab_size, LOGITS)
    return logits * (4 + number) + config.vocab_size * config.dim * (4 + 2 * number)


def count_devices(devices: int | str | list[int]) -> int | None:
    """Return how many devices `trainer.devices` names: a number, a list or `0,1`; None if that is left to the machine.

    Raises:
        UserError: it names none.
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


def run_layout(config: Any) -> Layout:
    """How a resolved `mm fit` config spreads its run.

    Raises:
        UserError: the number of devices is left to the machine, or the strategy is not known here.
    """
    trainer, data = config.trainer, config.data
    # What Lightning would take from this machine is 1 on a CPU, and not known for one that this is not.
    count = count_devices(trainer.devices) or 1
    strategy = trainer.strategy if isinstance(trainer.strategy, str) else trainer.strategy.class_path
    settings = {} if isinstance(trainer.strategy, str) else vars(trainer.strategy.init_args)
    deepspeed = "deepspeed" in strategy.lower()
    stage = 0
    if deepspeed:
        named = [n for n in (1, 2, 3) if f"stage_{n}" in strategy]
        stage = named[0] if named else settings.get("stage", 2)
    elif "fsdp" in strategy.lower():
        raise UserError(f"memory is known for the strategies auto, ddp and DeepSpeed, not for {strategy}")
    return Layout(
        devices=count * trainer.num_nodes,
        precision=str(trainer.precision or "32-true"),
        zero_stage=stage,
        deepspeed=deepspeed,
        offload="offload" in strategy or bool(settings.get("offload_optimizer")),
        offload_parameters="stage_3_offload" in strategy or bool(settings.get("offload_parameters")),
        bucket=settings.get("reduce_bucket_size", Layout.bucket),
        live_parameters=settings.get("max_live_parameters", Layout.live_parameters),
        micro_batch_size=data.micro_batch_size,
        context_length=data.context_length,
        activation_checkpointing=config.model.activation_checkpointing,
    )
