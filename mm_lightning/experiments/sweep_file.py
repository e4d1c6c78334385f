"""Sweep files: what they may hold, and the variants that they declare."""

from __future__ import annotations

import difflib
import itertools
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from mm_lightning.errors import UserError

STOPS = ("steps", "tokens", "flops")
MATCHES = ("parameters", "flops")


@dataclass
class Change:
    """How a variant differs from the base config.

    Attributes:
        configs: config files, as `--config` reads them.
        settings: single values by dotted key; keys `stop.steps`, `stop.tokens` and `stop.flops` are the stop rule.
        match: make the variant's `parameters` or training `flops` per token equal the baseline's, by the width of
            its persistent memory.
    """

    configs: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    match: str | None = None

    def then(self, later: Change) -> Change:
        """Both, where they disagree the later one."""
        return Change([*self.configs, *later.configs], {**self.settings, **later.settings}, later.match or self.match)


@dataclass
class Sweep:
    """A sweep file.

    A file may begin with `like: other.yaml`: what it does not say is as there.

    Args:
        base: the config file of all runs, or a list of them; paths are relative to the sweep file.
        settings: single values of all runs by dotted key.
        axes: what varies: for each axis, named values with their changes, or under a dotted key a list of values.
            The first value of each axis is the baseline's.
        design: `grid` runs all combinations of the axes' values, `one_change` the baseline and every value that
            differs from it in one axis.
        runs: instead of axes, the variants one by one: names with their changes. The first one is the baseline.
        baseline: with axes, the name of the variant that has the first value of each; with runs, which of them
            the others are compared with.
        seeds: a list, or how many, from 1 on.
        stop: `{steps: N}`, `{tokens: N}` or `{flops: N}` of training; by default the config's trainer.max_steps.
        warmup: share of a run's steps over which the learning rate rises, instead of model.warmup_steps.
        validations: how many, evenly spaced, instead of trainer.val_check_interval; Checkpoints saves as often.
        slurm: parameters of submitit's executor: nodes, tasks_per_node, gpus_per_node, timeout_min, slurm_partition...

    A change is a config file, a list of them, or a mapping of dotted keys to values, in which `config` names files and
    `match` is `parameters` or `flops`; nothing (null) changes nothing.
    """

    base: list[str]
    settings: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, dict[Any, Change]] = field(default_factory=dict)
    design: Literal["grid", "one_change"] = "grid"
    runs: dict[str, Change] = field(default_factory=dict)
    baseline: str | None = None
    seeds: list[int] = field(default_factory=lambda: [1])
    stop: dict[str, float] = field(default_factory=dict)
    warmup: float | None = None
    validations: int | None = None
    slurm: dict[str, Any] = field(default_factory=dict)
    path: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.seeds, int):
            self.seeds = list(range(1, self.seeds + 1))
        if not self.seeds or any(not isinstance(seed, int) for seed in self.seeds):
            raise UserError(f"{self.path}: seeds must be whole numbers or how many there are, got {self.seeds}")
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"{self.path}: a seed is there twice: {self.seeds}")
        if bool(self.axes) == bool(self.runs):
            raise UserError(f"{self.path} must have either axes or runs")
        if self.design not in ("grid", "one_change"):
            raise UserError(f"{self.path}: design must be grid or one_change, got {self.design!r}")
        if self.warmup is not None and not 0 <= self.warmup < 1:
            raise UserError(f"{self.path}: warmup is a share of the steps, at least 0 and below 1, got {self.warmup}")
        if self.validations is not None and self.validations < 1:
            raise UserError(f"{self.path}: validations must be at least 1, got {self.validations}")
        check_stop(self.stop, self.path)

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.path).stem


def check_stop(stop: dict[str, Any], path: str) -> None:
    """Holds a stop rule against what one can be.

    Raises:
        UserError: it is not one.
    """
    if not stop:
        return
    wrong = [key for key in stop if key not in STOPS]
    if not isinstance(stop, dict) or wrong or len(stop) > 1:
        raise UserError(f"{path}: stop must be one of steps, tokens and flops, as in `stop: {{tokens: 1e6}}`: {stop}")
    (value,) = stop.values()
    if not isinstance(value, (int, float)) or not value >= 1:
        raise UserError(f"{path}: stop must be a number of at least 1, got {value!r} (YAML wants 1.0e+6, not 1e6)")


def read_sweep(path: str | Path) -> Sweep:
    """A sweep file.

    Raises:
        UserError: it is missing, is not YAML, or has keys or values that a sweep cannot have.
    """
    values = _read(Path(path), ())
    if "base" not in values:
        raise UserError(f"sweep file {path} needs `base: CONFIG.yaml`, the config of all its runs")
    return Sweep(**values, path=str(path))


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The keys of a file over those of the one it is like, every file that they name relative to where we are."""
    from mm_lightning.training.config_files import read_yaml

    if path.resolve() in above:
        raise UserError(f"sweep file {path} is like itself")
    values = read_yaml(path)
    other = values.pop("like", None)
    known = [f.name for f in fields(Sweep) if f.name != "path"]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, [*known, "like"], 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are like, {', '.join(known)}"
            raise UserError(f"unknown key {key} in sweep file {path}: {hint}")
    if "base" in values:
        values["base"] = _files(path, values["base"])
    for key, parse in (("axes", _axis), ("runs", _change)):
        if key in values:
            if not isinstance(values[key], dict):
                raise UserError(f"{path}: {key} must map names to what they are")
            values[key] = {name: parse(path, name, value) for name, value in values[key].items()}
    if other is None:
        return values
    inherited = _read(path.parent / other, (*above, path.resolve()))
    if "axes" in values or "runs" in values:  # they exclude each other
        inherited = {key: value for key, value in inherited.items() if key not in ("axes", "runs", "design")}
    return {**inherited, **values}


def _axis(path: Path, name: str, values: Any) -> dict[Any, Change]:
    if isinstance(values, dict) and values:
        return {label: _change(path, f"{name}={label}", change) for label, change in values.items()}
    if isinstance(values, list) and values and "." in name:
        labels = [value if isinstance(value, (int, float, str)) else json.dumps(value) for value in values]
        return {label: Change(settings={name: value}) for label, value in zip(labels, values, strict=True)}
    raise UserError(
        f"{path}: axis {name} must map names to changes, or have a dotted key and a list of values, "
        f"as in `model.network.short_term_window: [64, 128]`"
    )


def _change(path: Path, name: str, value: Any) -> Change:
    if value is None:
        return Change()
    if isinstance(value, (str, list)):
        return Change(_files(path, value))
    if not isinstance(value, dict):
        raise UserError(f"{path}: {name} must be a config file, a list of them or a mapping, got {value!r}")
    settings = dict(value)
    configs = _files(path, settings.pop("config", []))
    match = settings.pop("match", None)
    if match not in (None, *MATCHES):
        raise UserError(f"{path}: match of {name} must be parameters or flops, got {match!r}")
    return Change(configs, settings, match)


def _files(path: Path, names: Any) -> list[str]:
    """Files that a sweep file names, relative to it."""
    return [str(path.parent / name) for name in (names if isinstance(names, list) else [names])]


@dataclass
class Variant:
    """One network and recipe of a sweep: its name, its value on each axis, and what it changes."""

    name: str
    values: dict[str, Any]
    change: Change


def variants(sweep: Sweep) -> list[Variant]:
    """The variants in order, the baseline among them.

    Raises:
        UserError: there is no such baseline.
    """
    if sweep.runs:
        found = [Variant(str(name), {}, change) for name, change in sweep.runs.items()]
        if sweep.baseline not in (None, *(variant.name for variant in found)):
            raise UserError(f"{sweep.path}: baseline {sweep.baseline!r} is not one of its runs")
        return found
    axes = {name.rsplit(".", 1)[-1]: values for name, values in sweep.axes.items()}
    first = {name: next(iter(values)) for name, values in axes.items()}
    found = []
    for labels in itertools.product(*axes.values()):
        values = dict(zip(axes, labels, strict=True))
        differing = [f"{name}={label}" for name, label in values.items() if label != first[name]]
        if sweep.design == "one_change" and len(differing) > 1:
            continue
        change = Change()
        for name, label in values.items():
            change = change.then(axes[name][label])
        found.append(Variant(", ".join(differing) or sweep.baseline or "base", values, change))
    return found


def baseline_of(sweep: Sweep, found: list[Variant]) -> Variant:
    """The variant that the others are compared with."""
    return next((variant for variant in found if variant.name == sweep.baseline), found[0])
