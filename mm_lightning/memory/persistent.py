"""Persistent memories, which hold what was learned in training: SwiGLU, mixtures of experts, v1's key-value slots."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm_lightning.memory.bandwidth import FixedBandwidth
from mm_lightning.memory.documents import Documents
from mm_lightning.memory.kernels.fused_read import fused_attention
from mm_lightning.memory.keys import LeakyKeys
from mm_lightning.memory.layers import V1_SCALAR_SCALE, Linear, clipped_normal_
from mm_lightning.memory.state import MemoryState


class Persistent(nn.Module):
    """A persistent memory that is a function of a token. Derive from it, and define :meth:`forward`, for another kind.

    The constructor's arguments are those of :class:`mm_lightning.memory.keys.Keys`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return answers (B, T, d) to inputs (B, T, d)."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward(x)")


class SwiGLU(Persistent):
    """The SwiGLU network W_2(SiLU(W_1 x) * W_3 x) with f hidden units."""

    def __init__(self, dim: int, hidden: int, std_in: float, std_out: float):
        super().__init__()
        self.W_1 = Linear(dim, hidden, std_in)
        self.W_3 = Linear(dim, hidden, std_in)
        self.W_2 = Linear(hidden, dim, std_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.W_2(F.silu(self.W_1(x)) * self.W_3(x))


class Experts(nn.Module):
    """A mixture of E SwiGLU networks of f hidden units; each token goes to the k with the largest router logits.

    The k largest of softmax(W_r x), made to sum to 1, weigh the experts' answers. No token is ever dropped.

    Args:
        dim: d.
        hidden: f, of each expert.
        experts: E.
        chosen: k.
        std_in: initial standard deviation of W_1, W_3 and the router.
        std_out: initial standard deviation of W_2.
    """

    def __init__(self, dim: int, hidden: int, experts: int, chosen: int, std_in: float, std_out: float):
        super().__init__()
        self.chosen, self.stds = chosen, (std_in, std_in, std_out)
        self.router = Linear(dim, experts, std_in)
        self.W_1 = nn.Parameter(torch.empty(experts, hidden, dim))
        self.W_3 = nn.Parameter(torch.empty(experts, hidden, dim))
        self.W_2 = nn.Parameter(torch.empty(experts, dim, hidden))
        self.reset_parameters()

    @property
    def active_parameters(self) -> int:
        """The number of parameters that multiply a token: those of the router and of k experts."""
        each = sum(weight[0].numel() for weight in (self.W_1, self.W_3, self.W_2))
        return self.router.weight.numel() + self.chosen * each

    def reset_parameters(self) -> None:
        for weight, std in zip((self.W_1, self.W_3, self.W_2), self.stds, strict=True):
            clipped_normal_(weight, std)

    def forward(self, x: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the answer (B, T, d) and the load-balancing loss, of sequences (B, T, d).

        The loss of a sequence is that of the Switch Transformer, E sum_e (share of choices that fall on e) (mean
        probability of e), over its counted tokens: 1 when they use all experts alike, E when all go to one. That of a
        batch is their mean by counted tokens. A product of two means over a whole batch would depend on how the batch
        is split into micro batches and over devices; a mean over sequences does not.

        Args:
            x: (B, T, d).
            counted: (B, T) bool, the tokens to take the loss over: those with a target. None: all.
        """
        tokens = x.flatten(0, -2)  # (N, d)
        logits = self.router(tokens)
        probability = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)  # (N, E)
        weight, choice = probability.topk(self.chosen, -1)  # (N, k)
        weight = weight / weight.sum(-1, keepdim=True)
        balance = self._balance(probability.view(*x.shape[:-1], -1), choice.view(*x.shape[:-1], -1), counted)
        # Sorted by expert, so that each one's tokens are one slice; every expert runs, if only on no token, so that
        # every weight has a gradient on every rank.
        order = choice.flatten().argsort(stable=True)
        rows = order // self.chosen
        counts = torch.bincount(choice.flatten(), minlength=probability.shape[-1]).tolist()
        answers = [
            F.linear(F.silu(F.linear(part, w1)) * F.linear(part, w3), w2)
            for part, w1, w3, w2 in zip(tokens[rows].split(counts), self.W_1, self.W_3, self.W_2, strict=True)
        ]
        answer = torch.cat(answers) * weight.flatten()[order][:, None].to(answers[0].dtype)
        return torch.zeros_like(tokens, dtype=answer.dtype).index_add(0, rows, answer).view(x.shape), balance

    @staticmethod
    def _balance(probability: Tensor, choice: Tensor, counted: Tensor | None) -> Tensor:
        """Return the load-balancing loss of (B, T, E) probabilities and (B, T, k) choices."""
        experts = probability.shape[-1]
        chosen = F.one_hot(choice, experts).sum(2).to(probability.dtype) / choice.shape[-1]  # (B, T, E)
        if counted is None:
            counted = torch.ones_like(choice[..., 0], dtype=torch.bool)
        weight = counted.to(probability.dtype)
        tokens = weight.sum(1)  # (B,)
        chosen, probability = (torch.einsum("bt,bte->be", weight, y) for y in (chosen, probability))
        return experts * ((chosen * probability).sum(1) / tokens.clamp(min=1)).sum() / tokens.sum().clamp(min=1)


class SlotMemory(nn.Module):
    """v1's persistent memory: S learned key-value pairs a head, read by a leaky average of the input.

        W_c [exp(s_o) softmax_i(exp(2 kappa) k.P_k,i) P_v,i],    k = Norm(leaky average of W_phi x)

    With several banks of slots their answers are averaged. Initially kappa = 1 and s_o = -0.5, both stored divided by
    ten.

    Args:
        dim: d.
        heads: H.
        slots: S, pairs of each head (and bank).
        banks: C.
        std: initial standard deviation of W_phi and W_c; that of the slots is 1/sqrt(D).
        bias: whether W_phi and W_c have a bias.
    """

    def __init__(self, dim: int, heads: int, slots: int, banks: int, std: float, bias: bool = False):
        super().__init__()
        self.heads = heads
        self.keys = LeakyKeys(dim, heads, std, bias)
        self.bandwidth = FixedBandwidth(heads, scaled_sides=1)
        self.slot_keys = nn.Parameter(torch.empty(banks, heads, slots, dim // heads))
        self.slot_values = nn.Parameter(torch.empty(banks, heads, slots, dim // heads))
        self.answer_scale = nn.Parameter(torch.empty(heads))
        self.W_c = Linear(dim, dim, std, bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for slots in (self.slot_keys, self.slot_values):
            if not slots.is_meta:
                nn.init.normal_(slots, std=slots.shape[-1] ** -0.5)
        nn.init.constant_(self.answer_scale, -0.5 / V1_SCALAR_SCALE)

    def new_state(self) -> MemoryState:
        """Return the empty inference state, that of the keys' average: the pairs are parameters."""
        return MemoryState()

    def forward(self, x: Tensor, documents: Documents, state: MemoryState | None = None) -> Tensor:
        """Return answers (B, T, d) to inputs (B, T, d).

        Args:
            x: inputs.
            documents: where documents begin.
            state: in inference, the state after the tokens before these; updated in place.
        """
        q, _ = self.keys(x, self.bandwidth.beta, documents, None if state is None else state.carried("keys"))
        # The batch is folded into the rows: every token reads the same slots.
        rows = q.flatten(0, 1).transpose(0, 1)[None]  # (1, H, B T, D)
        slot_keys, slot_values = self.slot_keys.to(q.dtype), self.slot_values.to(q.dtype)
        answers = [fused_attention(rows, pk[None], pv[None]) for pk, pv in zip(slot_keys, slot_values, strict=True)]
        answer = sum(answers) / len(answers)  # (1, H, B T, D)
        answer = answer * (V1_SCALAR_SCALE * self.answer_scale).exp()[:, None, None].to(q.dtype)
        return self.W_c(answer[0].transpose(0, 1).reshape(x.shape))
