"""How many bytes a training run needs on each device, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

from mm_lightning.networks import NetworkConfig
from mm_lightning.networks.cost import activation_bytes_per_token, parameters

LIVE_PARAMETERS = 10**9
"""Parameters that ZeRO-3 gathers at a time (DeepSpeed's stage3_max_live_parameters)."""


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
        micro_batch_size: sequences of one forward pass on one device.
        context_length: tokens of a sequence.
        activation_checkpointing: whether blocks are recomputed in the backward pass.
    """

    devices: int = 1
    precision: str = "32-true"
    zero_stage: int = 0
    deepspeed: bool = False
    offload: bool = False
    micro_batch_size: int = 1
    context_length: int = 4096
    activation_checkpointing: bool = False


def bytes_per_device(config: NetworkConfig, layout: Layout) -> dict[str, int]:
    """Bytes on each device of the weights, gradients, optimizer states (AdamW) and activations of a training step.

    What a framework adds (communication buckets, fragmentation, kernels' scratch space) is not in it.
    """
    short = layout.precision.startswith(("bf16", "16"))
    true_short = short and (layout.deepspeed or layout.precision.endswith("-true"))
    number = 2 if true_short else 4
    states = 12 if layout.deepspeed else 2 * number
    count = parameters(config)
    share = {stage: layout.devices if layout.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    tokens = layout.micro_batch_size * layout.context_length
    activations = activation_bytes_per_token(
        config, 2 if short else 4, 2 if true_short else 4, layout.activation_checkpointing
    )
    needed = {
        "weights": count * number // share[3],
        "gradients": count * number // share[2],
        "optimizer states": 0 if layout.offload else count * states // share[1],
        "activations": activations * tokens,
    }
    if layout.zero_stage == 3 and layout.devices > 1:
        needed["weights gathered for use"] = min(count, LIVE_PARAMETERS) * number
    return needed
