"""Plan the runs of a sweep file, each with its whole config, steps, parameters and FLOPs."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mm_lightning.errors import UserError
from mm_lightning.experiments.sweep_file import (
    Change,
    Sweep,
    Variant,
    check_stop,
    combinations,
    short_names,
    variants,
)
from mm_lightning.yaml_text import dump_yaml, one_line

if TYPE_CHECKING:
    from mm_lightning.networks import NetworkConfig


@dataclass
class Run:
    """One training run of a sweep.

    Attributes:
        variant: its variant's name.
        seed: seed_everything.
        folder: its folder, below the sweep's.
        values: its value on each axis.
        config: the resolved config of `mm fit`, as plain values.
        network: the configuration of the network.
        parameters: number of parameters.
        training_flops_per_token: forward and backward at the config's context.
        steps: optimizer steps.
        step_tokens: tokens of a step.
        tuned: its values of the settings that are tuned.
    """

    variant: str
    seed: int
    folder: str
    values: dict[str, Any]
    config: dict[str, Any]
    network: NetworkConfig
    parameters: int
    training_flops_per_token: int
    steps: int
    step_tokens: int
    tuned: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The variant with its tuned values."""
        return ", ".join([self.variant, *(f"{name}={value}" for name, value in self.tuned.items())])

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.steps * self.step_tokens

    @property
    def flops(self) -> int:
        """Training FLOPs of the whole run."""
        return self.tokens * self.training_flops_per_token


def plan(sweep: Sweep) -> list[Run]:
    """Return all runs, variant by variant, each with all tuned values and all seeds: of these, few may be final runs.

    Raises:
        UserError: a mistake in the sweep file or the configs it names.
    """
    all_variants = variants(sweep)
    combined = list(combinations(short_names(sweep.tune)))
    resolved: dict[str, list[Run]] = {}  # by variant, a run for each combination of tuned values
    for variant in sorted(all_variants, key=lambda variant: variant.name != variant.reference):  # references first
        references: list[Run | None] = [*resolved.get(variant.reference, [None] * len(combined))]
        pairs = zip(references, combined, strict=True)
        resolved[variant.name] = [resolve(sweep, variant, reference, tuned) for reference, tuned in pairs]
        if variant.name == variant.reference:
            _check_matching(sweep, resolved[variant.name])
    runs = []
    for variant in all_variants:
        for (tuned, _), run in zip(combined, resolved[variant.name], strict=True):
            below = slug(", ".join(f"{name}={value}" for name, value in tuned.items())) + "/" if tuned else ""
            for seed in sweep.seeds:
                config = copy.deepcopy(run.config)
                config["seed_everything"] = config["model"]["seed"] = config["data"]["seed"] = seed
                folder = f"{slug(variant.name)}/{below}seed-{seed}"
                runs.append(Run(**{**vars(run), "seed": seed, "folder": folder, "config": config}))
    _check_different(sweep, runs, lambda run: run.folder, "kept in the folder of {}: give one another name")
    _check_different(sweep, runs, lambda run: dump_yaml(run.config), "the same as {}: leave one out")
    return runs


def plan_tuning(sweep: Sweep, runs: list[Run]) -> list[Run]:
    """Return the runs that decide between tuned values: those of the first seed, or shorter ones by `tune_stop`."""
    if not sweep.tune:
        return []
    if not sweep.tune_stop:
        return [run for run in runs if run.seed == sweep.seeds[0]]
    shorter = []
    for run in runs:
        if run.seed == sweep.seeds[0]:
            short = replace(run, folder=f"tuning/{run.folder}", config=copy.deepcopy(run.config))
            short.steps = _steps(run, sweep.tune_stop)
            _set_steps(sweep, short, run.steps)
            shorter.append(short)
    return shorter


def plan_final(runs: list[Run], chosen: dict[str, dict[str, Any]]) -> list[Run]:
    """Return the final runs: of each variant those with the chosen values, without values where none are chosen yet."""
    final: dict[tuple[str, int], Run] = {}
    for run in runs:
        if not run.tuned or run.tuned == chosen.get(run.variant):
            final[run.variant, run.seed] = run
        else:
            undecided = replace(run, tuned={}, folder=f"{slug(run.variant)}/seed-{run.seed}")
            final.setdefault((run.variant, run.seed), undecided)
    return list(final.values())


def plan_largest(runs: list[Run], tuning: list[Run]) -> list[Run]:
    """Return the final runs that are no tuning runs, if of each variant the tuned values with the most FLOPs win."""
    largest: dict[str, Run] = {}
    for run in runs:
        if run.flops > largest.setdefault(run.variant, run).flops:
            largest[run.variant] = run
    tried = {run.folder for run in tuning}
    return [run for run in runs if run.tuned == largest[run.variant].tuned and run.folder not in tried]


def _check_matching(sweep: Sweep, references: list[Run]) -> None:
    """Check that tuned values leave the network alone where others are made equal to it."""
    matched = any(change.match for _, change in sweep.changes())
    if matched and len({(run.parameters, run.training_flops_per_token) for run in references}) > 1:
        raise UserError(
            f"{sweep.path}: with `match`, tuned settings must leave parameters and FLOPs of {references[0].variant} as "
            f"they are: use axes for settings that change the network"
        )


def _check_different(sweep: Sweep, runs: list[Run], what: Callable[[Run], str], mistake: str) -> None:
    seen: dict[str, Run] = {}
    for run in runs:
        before = seen.setdefault(what(run), run)
        if before is not run:
            raise UserError(f"{sweep.path}: {run.label} would be {mistake.format(before.label)}")


def slug(name: str) -> str:
    """Return a variant's name as the name of a folder.

    Raises:
        UserError: it has no letter, is too long, or is a reserved name of the sweep's folder.
    """
    folder = re.sub(r"[^\w=.,+-]+", "_", name).replace(",_", ",").strip("_.,")
    if not folder or len(folder.encode()) > 200 or folder in ("report", "slurm", "sweep.json", "tuning"):
        raise UserError(f"a variant cannot be called {name!r}: its name is also that of a folder; give it another")
    return folder


def resolve(sweep: Sweep, variant: Variant, reference: Run | None, tuned: tuple[dict[str, Any], Change]) -> Run:
    """Return the run of a variant, without its seed.

    Args:
        sweep: the sweep.
        variant: one of its variants.
        reference: the run, with the same tuned values, that `match` makes this one equal to.
        tuned: the tuned values, and what they change.
    """
    values, tuning = tuned
    change = Change(sweep.base, sweep.settings).then(variant.change).then(tuning)
    stop = {key.removeprefix("stop."): value for key, value in change.settings.items() if key.startswith("stop.")}
    check_stop(stop, sweep.path)
    settings = {key: value for key, value in change.settings.items() if not key.startswith("stop.")}
    run = _parsed(sweep, variant, change.configs, settings)
    if change.match and reference is not None and variant.name != reference.variant:
        settings |= _matching(sweep, run, reference, change.match)
        run = _parsed(sweep, variant, change.configs, settings)
    run.tuned = values
    run.steps = _steps(run, stop or sweep.stop)
    _set_steps(sweep, run, run.steps)
    return run


def _parsed(sweep: Sweep, variant: Variant, configs: list[str], settings: dict[str, Any]) -> Run:
    from mm_lightning.networks.cost import parameters, training_flops_per_token
    from mm_lightning.training.parse_fit import resolve_fit

    words = [word for path in configs for word in ("--config", path)]
    words += [f"--{key}={value if isinstance(value, str) else one_line(value)}" for key, value in settings.items()]
    try:
        parsed, config = resolve_fit(words)
    except UserError as error:
        raise UserError(f"{sweep.path}, {variant.name}: {error}") from error
    network, data = parsed.model.network, parsed.data
    if data.global_batch_size % data.micro_batch_size:
        raise UserError(
            f"{sweep.path}, {variant.name}: data.global_batch_size {data.global_batch_size} is not a multiple of "
            f"data.micro_batch_size {data.micro_batch_size}"
        )
    return Run(
        variant=variant.name,
        seed=0,
        folder="",
        values=variant.values,
        config=config,
        network=network,
        parameters=parameters(network),
        training_flops_per_token=training_flops_per_token(network, parsed.data.context_length),
        steps=parsed.trainer.max_steps,
        step_tokens=parsed.data.global_batch_size * parsed.data.context_length,
    )


def _matching(sweep: Sweep, run: Run, reference: Run, quantity: str) -> dict[str, int]:
    """Return the width of the persistent memory that gives a run as many parameters or FLOPs as the reference.

    Both grow linearly with the width, so two widths determine the solution.
    """
    from mm_lightning.networks.cost import parameters, training_flops_per_token

    name = "persistent_slots" if getattr(run.network, "persistent", None) == "key_value" else "persistent_dim"
    context = run.config["data"]["context_length"]

    def measure(width: int) -> int:
        network = replace(run.network, **{name: width})  # type: ignore[arg-type]
        return parameters(network) if quantity == "parameters" else training_flops_per_token(network, context)

    target = reference.parameters if quantity == "parameters" else reference.training_flops_per_token
    low, slope = measure(1), measure(2) - measure(1)
    if slope == 0:  # without a persistent memory, or with one of the user's own
        raise UserError(
            f"{sweep.path}, {run.variant}: {quantity} do not depend on model.network.{name}, the width that `match` "
            f"solves for: leave match out, and set the size of the persistent memory itself"
        )
    width = 1 + round((target - low) / slope)
    if width < 1:
        raise UserError(
            f"{sweep.path}, {run.variant}: even with {name} 1 it has {low:,} {quantity}, more than the {target:,} of "
            f"{reference.variant}: give it fewer layers or a smaller dim"
        )
    return {f"model.network.{name}": width}


def _steps(run: Run, stop: dict[str, float]) -> int:
    if not stop:
        if run.steps < 1:
            raise UserError(f"{run.variant} has no end: give the sweep a `stop`, or its config trainer.max_steps")
        return run.steps
    ((unit, amount),) = stop.items()
    step = {"steps": 1, "tokens": run.step_tokens, "flops": run.step_tokens * run.training_flops_per_token}[unit]
    return max(1, round(amount / step))


def _set_steps(sweep: Sweep, run: Run, final_steps: int) -> None:
    """Set the steps, the warm-up and the interval of validations and checkpoints in the config.

    A shorter tuning run validates at the interval of the final run, of `final_steps`, and at its end.
    """
    trainer, model = run.config["trainer"], run.config["model"]
    trainer["max_steps"] = run.steps
    if sweep.warmup is not None:
        model["warmup_steps"] = round(sweep.warmup * run.steps)
    if model["warmup_steps"] >= run.steps:
        raise UserError(
            f"{sweep.path}, {run.variant}: its {run.steps} steps would all be warm-up (model.warmup_steps "
            f"{model['warmup_steps']}): train longer, or add `warmup: 0.1`, a share of the steps"
        )
    if sweep.validations is not None:
        interval = min(run.steps, math.ceil(final_steps / sweep.validations))
        trainer["val_check_interval"] = interval
        callbacks = trainer.get("callbacks") or []
        for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
            if callback["class_path"].rsplit(".", 1)[-1] == "Checkpoints":
                callback["init_args"]["every_n_steps"] = interval
