"""Memory mosaics: v2 (section 3 of its paper), v1, and every step between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from mm_lightning.errors import UserError
from mm_lightning.memory.bandwidth import AdaptiveBandwidth, Bandwidth, FixedBandwidth
from mm_lightning.memory.compact_retrieval import COMPACT_KERNELS, CompactRetrieval
from mm_lightning.memory.contextual import ContextualMemory
from mm_lightning.memory.keys import GatedKeys, Keys, LeakyKeys
from mm_lightning.memory.persistent import Experts, Persistent, SlotMemory
from mm_lightning.memory.retrieval import Retrieval, SoftmaxRetrieval
from mm_lightning.memory.values import LookAheadValues, Scale, Values
from mm_lightning.networks.base import ForwardContext, Network, depth_std
from mm_lightning.networks.block import Block
from mm_lightning.networks.config import Hidden, NetworkConfig
from mm_lightning.networks.parts import Part, Spec, build_part, check_part
from mm_lightning.ranges import NonNegative, Positive

V1: dict[str, Any] = {
    "keys": "leaky",
    "bandwidth": "fixed",
    "levels": ("full",),
    "value_scale": "exp",
    "persistent": "key_value",
    "norm": "layer",
    "tied": True,
    "dropout": 0.05,
}
"""The switches of :class:`MemoryMosaicConfig` that make v1."""


@dataclass
class MemoryMosaicConfig(NetworkConfig):
    """A memory mosaic; with the defaults, v2.

    Keys, bandwidth, values, retrieval and persistent memory may also be classes of your own: class_path and init_args
    of each (docs/extending.md).

    Args:
        keys: gated (equation 8) or leaky (7, v1).
        bandwidth: adaptive (6), or fixed: exp(2 kappa) (v1).
        initial_bandwidth: of contextual memories, as a multiple of the published one: 4.5 n^(1/3) + 4.5, or e^2 (v1).
        values: look_ahead (9).
        retrieval: softmax (4), or a kernel of bounded support in its place: epanechnikov, biweight or triweight.
        look_ahead: whether a pair's value looks at the next token (9); without, it is the value of its own position.
        value_scale: alpha_psi = exp(min(|theta|, 15)) (exp_abs, v2) or exp(10 theta) (exp, v1).
        persistent: swiglu (v2), key_value (v1: learned pairs), experts (a mixture of SwiGLU networks) or none.
        persistent_slots: S, pairs of each head of the key_value form.
        persistent_banks: C, banks of slots whose answers are averaged.
        bias: whether v1's linear maps and norms have a bias, as some of its published checkpoints do.
        experts: E, SwiGLU networks of the experts form, each with persistent_dim hidden units.
        experts_per_token: k, how many of them each token uses.
        balance_weight: the weight of the load-balancing loss that keeps experts equally used within each sequence,
            which is added to the cross-entropy in training.
    """

    keys: Literal["gated", "leaky"] | Spec = "gated"
    bandwidth: Literal["adaptive", "fixed"] | Spec = "adaptive"
    initial_bandwidth: Positive = 1.0
    values: Literal["look_ahead"] | Spec = "look_ahead"
    retrieval: Literal["softmax", "epanechnikov", "biweight", "triweight"] | Spec = "softmax"
    look_ahead: bool = True
    value_scale: Scale = "exp_abs"
    persistent: Literal["swiglu", "key_value", "experts", "none"] | Spec = "swiglu"
    persistent_slots: Hidden = 2688
    persistent_banks: Hidden = 1
    bias: bool = False
    experts: Hidden = 8
    experts_per_token: Hidden = 2
    balance_weight: NonNegative = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("keys", "bandwidth", "values", "retrieval", "persistent"):
            check_part(name, getattr(self, name))
        if isinstance(self.bandwidth, dict) and self.initial_bandwidth != 1:
            raise UserError("initial_bandwidth is of bandwidths adaptive and fixed: use init_args of your class")
        if isinstance(self.values, dict) and (self.look_ahead, self.value_scale) != (True, "exp_abs"):
            raise UserError(
                f"look_ahead and value_scale are of values look_ahead, got {self.look_ahead} and {self.value_scale}: "
                f"leave them at true and exp_abs, and use init_args of your class"
            )
        if self.experts_per_token > self.experts:
            raise UserError(f"experts_per_token {self.experts_per_token} is more than the {self.experts} experts")
        parts = (self.keys, self.levels, self.persistent, self.norm)
        if self.bias and parts != ("leaky", ("full",), "key_value", "layer"):
            raise UserError("bias is for v1 alone: keys leaky, levels [full], persistent key_value and norm layer")

    def build(self) -> MemoryMosaic:
        return MemoryMosaic(self)


class MosaicBlock(Block):
    """x += W_o [long(norm(x)), short(norm(x))];  x += persistent(norm(x))"""

    def contextual_memories(self, config: MemoryMosaicConfig, index: int) -> dict[str, nn.Module]:
        return {level: contextual_memory(config, index) for level in config.levels}

    def persistent_memory(self, config: MemoryMosaicConfig, index: int) -> nn.Module | None:
        d, f, heads, std = config.dim, config.persistent_dim, config.heads, partial(depth_std, block=index)
        if isinstance(config.persistent, dict):
            return build_part(config.persistent, Persistent, d, heads, std)
        if config.persistent == "key_value":
            return SlotMemory(d, heads, config.persistent_slots, config.persistent_banks, std(d), config.bias)
        if config.persistent == "experts":
            return Experts(d, f, config.experts, config.experts_per_token, std(d), std(f))
        return super().persistent_memory(config, index) if config.persistent == "swiglu" else None

    def forward(self, x: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor | None]:
        if self.persistent_norm is None or not isinstance(self.persistent, SlotMemory | Experts):
            return super().forward(x, context)
        answers, balance = self.answers(x, context), None
        if isinstance(self.persistent, SlotMemory):  # whose average takes in every token
            x = self.add(x, answers)
            answer = self.persistent(self.persistent_norm(x), context.documents, context.state_of(self.persistent))
        else:
            x = self.add(*context.keep_last(x, answers))
            answer, balance = self.persistent(self.persistent_norm(x), context.balance_mask)
        return x + F.dropout(answer, self.dropout, self.training), balance


def contextual_memory(config: MemoryMosaicConfig, index: int) -> ContextualMemory:
    """Return a contextual memory of the block of this index as a configuration has it."""
    d, heads, bias = config.dim, config.heads, config.bias
    std = depth_std(d, index)

    def made(spec: str | Spec, base: type[Part], known: Callable[[], Part]) -> Part:
        return known() if isinstance(spec, str) else build_part(spec, base, d, heads, partial(depth_std, block=index))

    gated, initial = config.keys == "gated", config.initial_bandwidth
    bandwidth_class = AdaptiveBandwidth if config.bandwidth == "adaptive" else FixedBandwidth
    values = made(config.values, Values, lambda: LookAheadValues(heads, config.look_ahead, config.value_scale))
    keys = made(config.keys, Keys, lambda: GatedKeys(d, heads, std) if gated else LeakyKeys(d, heads, std, bias))
    bandwidth = made(config.bandwidth, Bandwidth, lambda: bandwidth_class(heads, initial=initial))
    power = COMPACT_KERNELS.get(str(config.retrieval))
    retrieval = made(config.retrieval, Retrieval, lambda: CompactRetrieval(power) if power else SoftmaxRetrieval())
    return ContextualMemory(d, heads, keys, values, bandwidth, retrieval, std, config.dropout, bias)


class MemoryMosaic(Network):
    """A language model whose contextual memories are kernel regressions over the document so far."""

    config: MemoryMosaicConfig

    def __init__(self, config: MemoryMosaicConfig):
        super().__init__(config, [MosaicBlock(config, index) for index in range(config.layers)])
        self.balance_weight = config.balance_weight
