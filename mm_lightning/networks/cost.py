"""Count what a network costs from its modules: parameters and FLOPs.

FLOPs follow Casson's count, which the v2 paper uses: two for each weight outside the embedding and each token, and for
each contextual memory (or attention) of each block 2 n d, with n the pairs read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from mm_lightning.memory.contextual import ContextualMemory
from mm_lightning.networks.base import Network
from mm_lightning.networks.block import Block
from mm_lightning.networks.config import NetworkConfig, once_per_config


@dataclass(frozen=True)
class ModuleCost:
    """One part of a network, all blocks together.

    Attributes:
        name: the name shown in tables.
        parameters: the number of parameters.
        active: how many of them multiply a token: matrices outside the embedding.
        reads: hidden size times blocks of its reads, if it is a contextual memory or attention.
        window: the most pairs that a query reads; None for all.
    """

    name: str
    parameters: int
    active: int
    reads: int = 0
    window: int | None = None

    def forward_flops(self, context: int) -> int:
        """Return the floating-point operations per token in the forward pass with `context` tokens in the context."""
        pairs = context if self.window is None else min(context, self.window)
        return 2 * self.active + 2 * pairs * self.reads


@once_per_config
def module_costs(config: NetworkConfig) -> list[ModuleCost]:
    """Return the parts of a network, from the embedding to the classifier.

    Its modules are counted as they are built, on the meta device. Every parameter of two dimensions or more
    multiplies a token, unless its module defines `active_parameters`. Each level has its share of W_o.
    """
    with torch.device("meta"):
        return _count(config.build())


def _count(network: Network) -> list[ModuleCost]:
    config, classifier = network.config, _part("classifier", [network.classifier])
    if config.tied:
        classifier = replace(classifier, parameters=0)
    blocks = [block for block in network.blocks if isinstance(block, Block)]
    if len(blocks) < len(network.blocks):  # blocks of a user's class: each module of the network is a part
        others = [(name, module) for name, module in network.named_children() if module is not network.classifier]
        return [*(_part(name, [module]) for name, module in others), classifier]
    costs = [_part("embedding", [network.embedding])]
    for level in dict.fromkeys(level for block in blocks for level in block.contextual):
        costs.append(_level(level, [block for block in blocks if level in block.contextual], config))
    persistent = [block.persistent for block in blocks if block.persistent is not None]
    if persistent:
        costs.append(_part("persistent memory", persistent))
    counted = sum(part.parameters for part in costs) + classifier.parameters
    rest = sum(p.numel() for p in network.parameters()) - counted  # biases of W_o with the norms
    return [*costs, ModuleCost("norms", rest, 0), classifier]


def _level(level: str, blocks: list[Block], config: NetworkConfig) -> ModuleCost:
    """Return the cost of the memories of one name, each with its share of its block's W_o."""
    memories = [block.contextual[level] for block in blocks]
    kind = "memory" if isinstance(memories[0], ContextualMemory) else "attention"
    part = _part(f"{level}-term {kind}", memories)
    matrices = ((block, w) for block in blocks for w in block.W_o.parameters() if w.dim() > 1)
    outputs = sum(w.numel() // len(block.contextual) for block, w in matrices)
    part = replace(part, parameters=part.parameters + outputs, active=part.active + outputs)
    if (constant := getattr(memories[0], "constant_reads", None)) is not None:  # a state instead of pairs
        return replace(part, name=f"{level} memory", reads=constant[0] * len(blocks), window=constant[1])
    name = kind if level == "full" else part.name
    return replace(part, name=name, reads=config.dim * len(blocks), window=config.span(level).keep)


def _part(name: str, modules: list[nn.Module]) -> ModuleCost:
    """Return the sum over modules."""
    total = sum(p.numel() for module in modules for p in module.parameters())
    return ModuleCost(name, total, sum(map(_active, modules)))


def _active(module: nn.Module) -> int:
    """Return how many of a module's parameters multiply a token: none of an embedding, which is looked up."""
    if (known := getattr(module, "active_parameters", None)) is not None:
        return known
    if isinstance(module, nn.Embedding):
        return 0
    matrices = sum(p.numel() for p in module.parameters(recurse=False) if p.dim() > 1)
    return matrices + sum(map(_active, module.children()))


def parameters(config: NetworkConfig) -> int:
    """Return the number of parameters of the whole network."""
    return sum(part.parameters for part in module_costs(config))


def forward_flops_per_token(config: NetworkConfig, context: int) -> int:
    """Return the floating-point operations per token of a forward pass at a context of `context` tokens."""
    return sum(part.forward_flops(context) for part in module_costs(config))


def training_flops_per_token(config: NetworkConfig, context: int) -> int:
    """Return the FLOPs per token of forward and backward: three forward passes, recomputed activations not counted."""
    return 3 * forward_flops_per_token(config, context)
