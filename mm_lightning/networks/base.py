"""The base class of all networks: embedding, blocks, classifier and loss."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from mm_lightning.errors import UserError
from mm_lightning.memory.contextual import ContextualMemory
from mm_lightning.memory.documents import IGNORE_INDEX, Documents, Span
from mm_lightning.memory.layers import Embedding, Norm
from mm_lightning.memory.state import MemoryState, NetworkState
from mm_lightning.memory.sublinear.key_clusters import SublinearRead
from mm_lightning.memory.sublinear.sublinear_cache import SublinearPairCache
from mm_lightning.networks.classifier import Classifier
from mm_lightning.networks.config import NetworkConfig


def depth_std(fan_in: int, block: int) -> float:
    """sigma = 1 / sqrt(2 fan_in (l + 1)) of Table 6 for a matrix in block l, counted from 0."""
    return 1 / math.sqrt(2 * fan_in * (block + 1))


@dataclass
class ForwardContext:
    """The inputs that all blocks of one forward pass share.

    Attributes:
        documents: where documents begin.
        spans: the pairs that each level reads.
        rotation: cos and sin of the rotary positions, for attention.
        balance_mask: (B, T) bool, the tokens over which load-balancing losses are taken; None for all.
        state: inference state; None in training.
        logits_to_keep: how many of the newest tokens leave the last block, after all of them entered its memories;
            None for all, and in every other block.
    """

    documents: Documents
    spans: dict[str, Span]
    rotation: tuple[Tensor, Tensor] | None = None
    balance_mask: Tensor | None = None
    state: NetworkState | None = None
    logits_to_keep: int | None = None

    def keep_last(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Keep the last `logits_to_keep` tokens of each (B, T, ...) tensor."""
        return tensors if self.logits_to_keep is None else tuple(x[:, -self.logits_to_keep :] for x in tensors)

    def state_of(self, module: nn.Module) -> MemoryState | None:
        """Return the state of a memory or attention; None in training."""
        return None if self.state is None else self.state.parts[str(module.state_name)]


Checkpointing = bool | Literal["selective"]
"""Recompute in the backward pass nothing (False), blocks (True), or all of them but products and reads (selective)."""


def _policy(context: Any, operation: Any, *args: Any, **settings: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if keeps_result(operation) else CheckpointPolicy.PREFER_RECOMPUTE


_keep_products = partial(create_selective_checkpoint_contexts, _policy)
"""Make the contexts of selective checkpointing: one for the forward pass, one for its recomputation."""


def keeps_result(operation: Any) -> bool:
    """Return whether selective checkpointing saves the result of an operation: matrix products and attention."""
    name, _, overload = operation.__name__.partition(".")
    # A compiled part writes products into buffers that it uses again: what was kept would be overwritten, and in the
    # backward pass be given back with the part's own buffer left unwritten.
    return overload != "out" and (name in ("mm", "addmm") or "attention" in name or "attn" in name)


class Network(nn.Module):
    """A language model: embedding, blocks, norm, classifier.

    Attributes:
        config: its configuration.
        activation_checkpointing: whether to recompute each block in the backward pass instead of keeping its
            activations; selective keeps those that matrix products and reads gave.
    """

    balance_weight = 0.0
    """Weight of the load-balancing loss in the training loss, where there is one."""

    def __init__(self, config: NetworkConfig, blocks: list[nn.Module]):
        super().__init__()
        self.config = config
        self.activation_checkpointing: Checkpointing = False
        std = 1 / math.sqrt(2 * config.dim)
        self.embedding = Embedding(config.vocab_size, config.dim, std)
        self.blocks = nn.ModuleList(blocks)
        self.norm = Norm(config.dim, config.norm_eps, config.norm, config.bias)
        self.classifier = Classifier(config.dim, config.vocab_size, std)
        if config.tied:
            self.classifier.weight = self.embedding.weight
        for name, module in self.named_modules():
            if hasattr(module, "new_state"):
                module.state_name = name

    def forward(
        self,
        tokens: Tensor,
        documents: Documents | None = None,
        targets: Tensor | None = None,
        delays: Mapping[str, int] | None = None,
        state: NetworkState | None = None,
        starts: Tensor | None = None,
        logits_to_keep: int | None = None,
        separate_losses: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """Return logits or, with targets, the loss.

        Args:
            tokens: (B, T) int64.
            documents: their boundaries; by default every row is one document.
            targets: (B, T) int64, the next tokens; -100 where there is none to predict.
            delays: m of each level, drawn by :meth:`step_randomness` in training; that of inference by default.
            state: the inference state before the tokens, from :meth:`new_state`; updated in place.
            starts: with a state, instead of documents: (B, T) bool, true where a document begins.
            logits_to_keep: return logits of this many newest tokens only; by default of all.
            separate_losses: with targets, return cross-entropy and load-balancing loss instead of their sum.

        Returns:
            (B, T, V) logits, or with targets the mean loss in nats per target, in float32 or better: the cross-entropy,
            and in training mode `balance_weight` times the load-balancing loss of a mixture of experts. With
            `separate_losses`, both, the latter without its weight and None where there is none.
        """
        balance_mask = None if targets is None else targets != IGNORE_INDEX
        x, balance = self.hidden_states(tokens, documents, delays, state, starts, logits_to_keep, balance_mask)
        if targets is None:
            return self.classifier(x)
        loss = self.classifier(x, targets)
        return (loss, balance) if separate_losses else self.total_loss(loss, balance)

    def total_loss(self, loss: Tensor, balance: Tensor | None) -> Tensor:
        """Return the loss to minimize: the cross-entropy plus the weighted load-balancing loss, if there is one."""
        return loss if balance is None else loss + self.balance_weight * balance

    def hidden_states(
        self,
        tokens: Tensor,
        documents: Documents | None = None,
        delays: Mapping[str, int] | None = None,
        state: NetworkState | None = None,
        starts: Tensor | None = None,
        logits_to_keep: int | None = None,
        balance_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the last hidden states (B, T, d), and in training mode the load-balancing loss of experts, else None.

        Arguments as for :meth:`forward`; tokens may also be embeddings, (B, T, d). The load-balancing loss is taken
        over the tokens where `balance_mask`, (B, T) bool, is true; by default over all.
        """
        batch, time = tokens.shape[:2]
        if state is None:
            documents = documents or Documents.whole(batch, time, tokens.device)
        elif torch.is_grad_enabled() or documents is not None:
            raise ValueError("a state is for inference: under torch.inference_mode(), with `starts`, not `documents`")
        else:
            documents = state.documents(batch, time, starts)
        context = self.context(documents, delays)
        context.state, context.balance_mask = state, balance_mask
        x = tokens if tokens.is_floating_point() else self.embedding(tokens)
        losses = []
        for block in self.blocks:
            if state is not None and block is self.blocks[-1]:
                context.logits_to_keep = logits_to_keep
            if self.activation_checkpointing and torch.is_grad_enabled():
                selective = self.activation_checkpointing == "selective"
                contexts: dict[str, Any] = {"context_fn": _keep_products} if selective else {}
                x, balance = checkpoint(block, x, context, use_reentrant=False, **contexts)
            else:
                x, balance = block(x, context)
            losses += [] if balance is None else [balance]
        if state is not None:
            state.advance(documents)
        if logits_to_keep is not None:
            x = x[:, -logits_to_keep:]
        return self.norm(x), torch.stack(losses).mean() if self.training and losses else None

    def new_state(self, batch: int = 1, capacity: int = 0, sublinear: SublinearRead | None = None) -> NetworkState:
        """Return the empty inference state.

        Args:
            batch: rows.
            capacity: tokens to make room for at once; a longer stream makes more room by itself, in doubling steps.
            sublinear: how memories without a window are read by clusters when single tokens are decoded; by default
                they are read whole.

        Raises:
            UserError: no memory of the network can be read so.
        """
        parts: dict[str, MemoryState] = {}
        spans = self.context(Documents.whole(1, 1)).spans
        for name, module in self.named_modules():
            if module is self or not hasattr(module, "new_state"):
                continue
            span = spans.get(name.rsplit(".", 1)[-1])
            if span is None:
                parts[name] = module.new_state()
            elif sublinear and span.size is None and isinstance(module, ContextualMemory) and module.sublinear:
                cache = SublinearPairCache(capacity, sublinear, module.keys.kernels)
                parts[name] = module.new_state(span, capacity, cache)
            else:
                parts[name] = module.new_state(span, capacity)
        if sublinear and not any(isinstance(part.pairs, SublinearPairCache) for part in parts.values()):
            raise UserError(
                "sub-linear reads are for contextual memories without a window, such as levels long or full of a "
                "memory mosaic: this network has none, leave them out"
            )
        return NetworkState(parts, batch, next(self.parameters()).device)

    def context(self, documents: Documents, delays: Mapping[str, int] | None = None) -> ForwardContext:
        """Return the inputs that all blocks share; `delays` is m by level, by default that of inference."""
        drawn = delays or {}
        return ForwardContext(
            documents, {level: self.config.span(level, drawn.get(level)) for level in self.config.levels}
        )

    def step_randomness(self, seed: int, step: int) -> dict[str, Any]:
        """Draw the delays of a training step: the same on every rank and in every rerun of the seed."""
        delays = {}
        for level in self.config.levels:
            name = "long-term delay" if level == "long" else f"delay of level {level}"
            if (reach := self.config.reach(level)).delay != 1:
                delays[level] = random.Random(f"{name} of seed {seed}, step {step}").randint(*reach.delays)
        return {"delays": delays} if delays else {}

    def reset_parameters(self) -> None:
        """Initialize every layer again, on the device of its parameters."""
        if self.config.tied:
            self.classifier.weight = self.embedding.weight
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if module is not self and callable(reset):
                reset()

    def memory_scalars(self) -> dict[str, Tensor]:
        """Return the learned scalars by memory level and name, e.g. `long/alpha`, each (L * H,)."""
        scalars: dict[str, list[Tensor]] = {}
        for memory_name, memory in self.named_modules():
            if isinstance(memory, ContextualMemory):
                for name, value in memory.scalars().items():
                    scalars.setdefault(f"{memory_name.rsplit('.', 1)[-1]}/{name}", []).append(value.detach())
        return {name: torch.cat(values) for name, values in scalars.items()}

    def weight_decay_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return the parameters with weight decay (matrices) and those without (scalars and norms)."""
        # DeepSpeed's stage 3 leaves an empty shard in a parameter's place and its shape in ds_shape.
        matrices = [p for p in self.parameters() if len(getattr(p, "ds_shape", p.shape)) >= 2]
        chosen = {id(p) for p in matrices}
        return matrices, [p for p in self.parameters() if id(p) not in chosen]
