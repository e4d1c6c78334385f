"""Optimizers by name or class_path, and their parameter groups: AdamW (Appendix C of the v2 paper), Muon, any other."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from mm_lightning.console import say
from mm_lightning.errors import UserError
from mm_lightning.networks import Network
from mm_lightning.options import nearest
from mm_lightning.ranges import Name, Range, check_fields
from mm_lightning.training.choices import Choice, named_class
from mm_lightning.training.lightning_internals import allow_clipping

Decay = Annotated[float, Range(0, 1000)]

FUSED = torch.optim.AdamW, torch.optim.Adam
"""Classes whose fused kernel leaves out the whole update, the count of steps too, where `found_inf` is set."""
REFUSED = {
    torch.optim.LBFGS: "runs the training step several times",
    torch.optim.SparseAdam: "is for sparse gradients",
}
"""Classes whose step is no function of one gradient, and why."""


@dataclass
class ParameterGroup:
    """Settings of the parameters whose names a pattern matches.

    Args:
        pattern: a regular expression, found anywhere in a parameter's name; the first that matches decides.
        learning_rate: factor of model.learning_rate and its schedule.
        weight_decay: of the matrices among them, instead of model.weight_decay.
    """

    pattern: Name
    learning_rate: Annotated[float, Range(0, 1000)] = 1.0
    weight_decay: Decay | None = None

    def __post_init__(self) -> None:
        check_fields(self, "model.parameter_groups: ")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UserError(f"model.parameter_groups: {self.pattern} is no regular expression: {error}") from error


class Muon(Optimizer):
    """Muon for the matrices of linear maps in blocks, AdamW for all other parameters, as one optimizer.

    Both are torch's, https://kellerjordan.github.io/posts/muon. Their groups and states are those of this optimizer.

    Args:
        params: parameter groups; those with `use_muon: true` are Muon's.
        lr: the learning rate of both.
        betas: AdamW's.
        momentum: Muon's.
        nesterov: whether Muon's momentum looks ahead.
        ns_steps: steps of Newton-Schulz, which orthogonalizes the momentum.
        adjust_lr_fn: how Muon's rate depends on a matrix's shape: match_rms_adamw gives updates the size of AdamW's, so
            that AdamW's learning rate and weight decay serve; original, spectral_unclamped are torch's others.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
    ) -> None:
        groups = list(params)
        matrices = [group for group in groups if group["use_muon"]]
        others = [group for group in groups if not group["use_muon"]]
        self.parts: list[Optimizer] = []  # which fill in the settings of their groups
        if matrices:
            muon = torch.optim.Muon(
                matrices, lr=lr, momentum=momentum, nesterov=nesterov, ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn
            )
            self.parts.append(muon)
        if others:
            self.parts.append(torch.optim.AdamW(others, lr=lr, betas=betas, fused=True))
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:  # load_state_dict replaces groups and state
            is_muon = isinstance(part, torch.optim.Muon)
            part.param_groups = [group for group in self.param_groups if group["use_muon"] == is_muon]
            part.state = self.state
            part.step()
        return loss


def parameter_groups(
    network: Network, choice: Choice, weight_decay: float, patterns: list[ParameterGroup] | None = None
) -> list[dict[str, Any]]:
    """Return an optimizer's parameter groups, with weight decay on matrices only; `lr` is a factor.

    Without patterns and Muon: matrices, then norms and scalars. For Muon, matrices of linear maps in blocks are in
    groups of their own, with `use_muon: true`.

    Args:
        network: whose parameters are optimized.
        choice: model.optimizer.
        weight_decay: of matrices.
        patterns: settings of some of the parameters; their groups follow in this order.

    Raises:
        UserError: a pattern matches no parameter.
    """
    patterns, muon = patterns or [], optimizer_class_of(choice) is Muon
    matrices = {id(p) for p in network.weight_decay_groups()[0]}
    hidden = {id(p) for p in muon_matrices(network)} if muon else set()
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):  # a tied one has two names
        names.setdefault(id(parameter), []).append(name)

    def key(parameter: nn.Parameter) -> tuple[int, int]:
        own = names[id(parameter)]
        place = (n for n, group in enumerate(patterns) if any(re.search(group.pattern, name) for name in own))
        return next(place, -1), 0 if id(parameter) in hidden else 1 if id(parameter) in matrices else 2

    members: dict[tuple[int, int], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        members.setdefault(key(parameter), []).append(parameter)
    used = {place for place, _ in members}
    for place, group in enumerate(patterns):
        if place not in used:
            raise UserError(_unmatched(group, [name for named in names.values() for name in named]))
    groups = []
    for (place, kind), parameters in sorted(members.items()):
        pattern = patterns[place] if place >= 0 else ParameterGroup("everything else")
        decay = weight_decay if pattern.weight_decay is None else pattern.weight_decay
        settings: dict[str, Any] = {"params": parameters, "weight_decay": 0.0 if kind == 2 else decay}
        if pattern.learning_rate != 1:
            settings["lr"] = pattern.learning_rate
        groups.append(settings | ({"use_muon": kind == 0} if muon else {}))
    return groups


def muon_matrices(network: Network) -> list[Tensor]:
    """Return the matrices of linear maps in blocks: not embedding, classifier, convolutions, norms or experts."""
    maps = (module for module in network.blocks.modules() if isinstance(module, nn.Linear))
    return [module.weight for module in maps]


def _unmatched(group: ParameterGroup, names: list[str]) -> str:
    words = {re.sub(r"\d+", "0", name) for name in names} | {part for name in names for part in name.split(".")}
    near = nearest(group.pattern, words)
    hint = f"did you mean {near}?" if near else f"names are {', '.join(names[:8])} ..."
    return f"model.parameter_groups: no parameter's name matches {group.pattern}: {hint}"


def build_optimizer(
    choice: Choice, groups: list[dict[str, Any]], learning_rate: float, betas: tuple[float, float], zero: bool = False
) -> Optimizer:
    """Build the optimizer of a run.

    Args:
        choice: model.optimizer.
        groups: its parameter groups, in which `lr` is a factor.
        learning_rate: the peak.
        betas: of AdamW and its kin, unless init_args has them.
        zero: whether ZeRO gives it flat pieces of the parameters.

    Raises:
        UserError: there is no such optimizer, or it takes other arguments.
    """
    optimizer_class, settings = optimizer_class_of(choice), choice.init_args
    if zero and optimizer_class is Muon:
        from mm_lightning.training.zero_muon import ZeroMuon as optimizer_class  # imports DeepSpeed
    takes = inspect.signature(optimizer_class).parameters
    for name in ("lr", "weight_decay"):
        if name in settings:
            other = {"lr": "learning_rate"}.get(name, name)
            raise UserError(f"model.optimizer: {name} in init_args is model.{other}: set that")
    defaults: dict[str, Any] = {"betas": (betas[0], betas[1])} if "betas" in takes else {}
    if optimizer_class in FUSED and not {"fused", "foreach"} & settings.keys():
        defaults["fused"] = True
    groups = [{**group, "lr": learning_rate * group["lr"]} if "lr" in group else group for group in groups]
    try:
        optimizer = optimizer_class(groups, **{"lr": learning_rate, **defaults, **settings})
    except (TypeError, ValueError) as error:
        known = ", ".join(name for name in takes if name not in ("params", "lr", "weight_decay"))
        raise UserError(f"model.optimizer {choice.name}: {error}; its init_args may be {known}") from error
    allow_clipping(optimizer)
    return optimizer


def optimizer_class_of(choice: Choice) -> type[Optimizer]:
    """Return the class of model.optimizer; the name muon means :class:`Muon`.

    Raises:
        UserError: there is no such class, or a step is no function of one gradient.
    """
    if choice.name.lower() == "muon":
        return Muon
    optimizer_class = named_class("model.optimizer", choice.name, Optimizer, torch.optim, ["muon"])
    if what := REFUSED.get(optimizer_class):
        raise UserError(f"model.optimizer {optimizer_class.__name__} {what}: take another one")
    return optimizer_class


def skips_on_device(optimizer: Optimizer) -> bool:
    """Return whether an optimizer leaves out an update by its attribute `found_inf`, without a host sync."""
    return type(optimizer) in FUSED and bool(optimizer.defaults.get("fused"))


def state_elements(groups: list[dict[str, Any]], choice: Choice) -> int:
    """Return the elements of the optimizer's states that have a parameter's shape: AdamW keeps two a parameter.

    Counted after a step over a small parameter for each group, so that it holds for any optimizer.

    Args:
        groups: the parameter groups of a network, which may be on the meta device.
        choice: model.optimizer.
    """
    total = 0
    for group in groups:
        small = nn.Parameter(torch.ones(4, 4) if group["params"][0].dim() > 1 else torch.ones(4))
        optimizer = build_optimizer(choice, [{**group, "params": [small]}], 1e-3, (0.9, 0.95))
        small.grad = torch.ones_like(small)
        optimizer.step()
        states = (value for value in optimizer.state[small].values() if isinstance(value, Tensor))
        copies = sum(value.shape == small.shape for value in states)
        total += copies * sum(parameter.numel() for parameter in group["params"])
    return total


def uses_zero(trainer: Trainer) -> bool:
    """Return whether an optimizer gets flat pieces of the parameters, as all stages of DeepSpeed give it."""
    return isinstance(trainer.strategy, DeepSpeedStrategy)


def check_optimizer(trainer: Trainer, choice: Choice) -> None:
    """Check that the strategy and precision of a run can train with an optimizer.

    Raises:
        UserError: its states would be in float16, or ZeRO would give it pieces of matrices.
    """
    deepspeed = uses_zero(trainer)
    if trainer.precision == "16-true" and not deepspeed:
        raise UserError(
            "trainer.precision 16-true keeps the optimizer's moments in float16, which ends at 6e-8, and diverges: use "
            "bf16-true, bf16-mixed or 16-mixed"
        )
    optimizer_class = optimizer_class_of(choice)
    if deepspeed and optimizer_class in (torch.optim.Muon, torch.optim.Adafactor):
        raise UserError(
            f"model.optimizer {optimizer_class.__name__} needs whole matrices, of which ZeRO gives each process a flat "
            f"piece: use trainer.strategy ddp, or adamw, sgd or another optimizer that treats each element alike"
        )
    if deepspeed and optimizer_class is Muon:
        _prepare_zero_muon(trainer)
    if "weight_decay" not in inspect.signature(optimizer_class).parameters and optimizer_class is not Muon:
        say(f"WARNING: model.optimizer {optimizer_class.__name__} has no weight decay: model.weight_decay is not used")


def _prepare_zero_muon(trainer: Trainer) -> None:
    """Refuse what DeepSpeed's Muon computes wrongly, and set what it requires."""
    config: dict[str, Any] = trainer.strategy.config  # type: ignore[attr-defined]
    if clip := trainer.gradient_clip_val or config.get("gradient_clipping"):
        raise UserError(
            f"model.optimizer muon under ZeRO is DeepSpeed's, which clips its orthogonalized updates instead of the "
            f"gradients, got trainer.gradient_clip_val {clip}: set it to null, or use trainer.strategy ddp"
        )
    if str(trainer.precision).startswith("16"):
        raise UserError(
            f"model.optimizer muon under ZeRO adds up gradients of different loss scales, got trainer.precision "
            f"{trainer.precision}: use bf16-mixed, or trainer.strategy ddp"
        )
    # Stage 3 requires it. Stage 2 in bf16 loses the gradient of a parameter before a matrix in a bucket otherwise.
    config["zero_optimization"]["reduce_scatter"] = False
