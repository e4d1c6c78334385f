"""Read sweep files, and list the variants that they declare."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from mm_lightning.errors import UserError
from mm_lightning.options import nearest
from mm_lightning.ranges import Count, Name, Part, Range, Seed, accept, check_fields
from mm_lightning.shipped import resolve_config

STOPS = ("steps", "tokens", "flops")
MATCHES = ("parameters", "flops")


@dataclass
class Change:
    """The difference of a variant from the base config.

    Attributes:
        configs: config files, as `--config` reads them.
        settings: single values by dotted key; keys `stop.steps`, `stop.tokens` and `stop.flops` are the stop rule.
        match: make the variant's `parameters` or training `flops` per token equal the baseline's, at the same values
            of the other axes, by the width of its persistent memory.
    """

    configs: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    match: str | None = None

    def then(self, later: Change) -> Change:
        """Return both changes together, in which the later one takes precedence."""
        earlier = self.settings
        if any(key.startswith("stop.") for key in later.settings):  # one stop rule replaces another
            earlier = {key: value for key, value in earlier.items() if not key.startswith("stop.")}
        return Change([*self.configs, *later.configs], {**earlier, **later.settings}, later.match or self.match)


@dataclass
class Sweep:
    """The content of a sweep file.

    A file may begin with `like: other.yaml`, from which keys that it lacks are taken.

    Args:
        base: the config file of all runs, or a list of them; paths are relative to the sweep file.
        settings: single values of all runs by dotted key.
        axes: the factors of the sweep: for each axis, named values with their changes, or under a dotted key a list of
            values. The first value of each axis is the baseline's.
        design: `grid` runs all combinations of the axes' values, `one_change` the baseline and every value that
            differs from it in one axis.
        runs: instead of axes, the variants one by one: names with their changes. The first one is the baseline.
        baseline: with axes, the name of the variant that has the first value of each; with runs, the one that others
            are compared with. Where numeric axes are varied beside others, variants are compared at equal numbers, and
            a variant that differs in numbers alone with the baseline.
        seeds: a list, or how many, from 1 on.
        stop: `{steps: N}`, `{tokens: N}` or `{flops: N}` of training; by default the config's trainer.max_steps.
        tune: settings that are tuned for each variant, written as axes are: the first seed trains every combination of
            their values, the other seeds the best one.
        tune_metric: the metric whose last value decides.
        tune_mode: `min` or `max`, the best value of the metric.
        tune_stop: a stop rule of the tuning runs, which then are none of the final runs.
        warmup: share of a run's steps over which the learning rate rises, instead of model.warmup_steps.
        validations: how many in a final run, evenly spaced, instead of trainer.val_check_interval; Checkpoints saves as
            often.
        published: what others published, for the report: `source` says where, and each metric maps names to numbers:
            {validation/accuracy: {transformer: 0.54, oracle: 1.0}}. A variant's name puts it beside that variant.
        slurm: parameters of submitit's executor: nodes, tasks_per_node, gpus_per_node, timeout_min, slurm_partition...

    A change is a config file, a list of them, or a mapping of dotted keys to values, in which `config` names files and
    `match` is `parameters` or `flops`; nothing (null) changes nothing. Sections may be nested instead of dotted.
    """

    base: list[str]
    settings: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, dict[Any, Change]] = field(default_factory=dict)
    design: Literal["grid", "one_change"] = "grid"
    runs: dict[str, Change] = field(default_factory=dict)
    baseline: Name | None = None
    seeds: list[Seed] = field(default_factory=lambda: [1])
    stop: dict[str, float] = field(default_factory=dict)
    tune: dict[str, dict[Any, Change]] = field(default_factory=dict)
    tune_metric: Name = "validation/loss"
    tune_mode: Literal["min", "max"] = "min"
    tune_stop: dict[str, float] = field(default_factory=dict)
    warmup: Part | None = None
    validations: Count | None = None
    published: dict[str, Any] = field(default_factory=dict)
    slurm: dict[str, Any] = field(default_factory=dict)
    path: str = ""

    def __post_init__(self) -> None:
        for name, of in (("settings", "dotted keys to values"), ("slurm", "submitit's parameters to values")):
            if not isinstance(value := getattr(self, name), dict):
                raise UserError(f"{self.path}: {name} must be a mapping of {of}, got {value!r}")
        check_published(self.published, self.path)
        if not isinstance(self.seeds, list):  # the number of seeds
            self.seeds = list(range(1, accept(Annotated[int, Range(1, 10_000)], self.seeds, f"{self.path}: seeds") + 1))
        check_fields(self, f"{self.path}: ")
        if not self.seeds:
            raise UserError(f"{self.path}: seeds is empty: name one or more, or how many there are")
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"{self.path}: a seed is there twice: {self.seeds}")
        if bool(self.axes) == bool(self.runs):
            raise UserError(f"{self.path} must have either axes or runs")
        check_stop(self.stop, self.path)
        check_stop(self.tune_stop, self.path, "tune_stop")
        self.settings = flat(self.settings)
        tuned = dict.fromkeys((key for change in self._tuned().values() for key in change.settings), "tune")
        self._check_settings(self.settings, "settings", tuned)
        for name, change in self.changes():
            self._check_settings(change.settings, name, tuned)
        for name, change in self._tuned().items():
            self._check_settings(change.settings, name, {})
            if change.match or any(key.startswith("stop.") for key in change.settings):
                raise UserError(f"{self.path}, {name}: tuned values have no match and no stop: use axes for these")
        for name in ("tune_stop", "tune_metric", "tune_mode"):
            if not self.tune and getattr(self, name) != getattr(type(self), name, {}):
                raise UserError(f"{self.path}: {name} is there without tune: name the settings that are to be tuned")
        if self.tune_stop and any(key.startswith("stop.") for _, change in self.changes() for key in change.settings):
            raise UserError(f"{self.path}: tune_stop is one rule for all variants, which have stop rules of their own")

    def changes(self) -> Iterator[tuple[str, Change]]:
        """Yield the change of each variant, or of each value of an axis, with its name."""
        yield from self.runs.items()
        for axis, values in self.axes.items():
            for label, change in values.items():
                yield f"{axis}={label}", change

    def _tuned(self) -> dict[str, Change]:
        return {f"{axis}={label}": change for axis, values in self.tune.items() for label, change in values.items()}

    def _check_settings(self, settings: dict[str, Any], where: str, tuned: dict[str, str]) -> None:
        """Raise a UserError for a setting that the sweep itself sets and would overwrite."""
        decided = {**tuned, "run": "--output", "seed_everything": "seeds", "model.seed": "seeds", "data.seed": "seeds"}
        if self.stop or any(key.startswith("stop.") for key in settings):
            decided["trainer.max_steps"] = "stop"
        if self.warmup is not None:
            decided["model.warmup_steps"] = "warmup"
        if self.validations is not None:
            decided["trainer.val_check_interval"] = "validations"
        for key in settings:
            if key in ("ckpt_path", "resume"):
                raise UserError(
                    f"{self.path}, {where}: {key} is of one run, those of a sweep begin at step 0: leave it out, and "
                    f"branch off a checkpoint with `mm fit --ckpt_path`"
                )
            if key in decided:
                why = f"{key} is decided by `{decided[key]}` of the sweep"
                raise UserError(f"{self.path}, {where}: {why}: leave it out")

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.path).stem


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Return nested sections by dotted keys, {"model": {"network": {"dim": 64}}} as {"model.network.dim": 64}."""
    by_key: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value and "class_path" not in value:
            by_key |= {f"{key}.{rest}": inner for rest, inner in flat(value).items()}
        else:
            by_key[str(key)] = value
    return by_key


def check_stop(stop: dict[str, Any], path: str, name: str = "stop") -> None:
    """Check that a stop rule is one of steps, tokens and flops with a number of at least 1.

    Raises:
        UserError: it is not.
    """
    if stop == {}:
        return
    if not isinstance(stop, dict) or len(stop) > 1 or any(key not in STOPS for key in stop):
        raise UserError(
            f"{path}: {name} must be one of steps, tokens and flops, as in `{name}: {{tokens: 1_000_000}}`, got {stop}"
        )
    (value,) = stop.values()
    if type(value) not in (int, float) or not 1 <= value < math.inf:
        raise UserError(f"{path}: {name} must be a number of at least 1, got {value!r}")


def check_published(published: Any, path: str) -> None:
    """Check that published numbers are a source, and numbers by name for each metric.

    Raises:
        UserError: they are not.
    """
    for metric, values in published.items() if isinstance(published, dict) else [("", published)]:
        numbers = isinstance(values, dict) and all(type(value) in (int, float) for value in values.values())
        if not (isinstance(values, str) if metric == "source" else numbers):
            raise UserError(
                f"{path}: published must be {{source: TEXT, METRIC: {{NAME: NUMBER}}}}, got {metric} {values!r}"
            )


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep file.

    Raises:
        UserError: it is missing, is not YAML, or has keys or values that a sweep cannot have.
    """
    path = resolve_config(path, "sweeps")
    values = _read(path, ())
    if "base" not in values:
        raise UserError(f"sweep file {path} needs `base: CONFIG.yaml`, the config of all its runs")
    return Sweep(**values, path=str(path))


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Return the keys of a file over those of its `like`, with the paths of configs resolved."""
    from mm_lightning.training.config_files import read_config

    if path.resolve() in above:
        raise UserError(f"sweep file {path} is like itself")
    values = read_config(path)
    other = values.pop("like", None)
    known = [f.name for f in fields(Sweep) if f.name != "path"]
    for key in values:
        if key not in known:
            near = nearest(key, [*known, "like"])
            hint = f"did you mean {near}?" if near else f"there are like, {', '.join(known)}"
            raise UserError(f"unknown key {key} in sweep file {path}: {hint}")
    if "base" in values:
        values["base"] = _files(path, values["base"] or [values["base"]])
    for key, parse in (("axes", _axis), ("tune", _axis), ("runs", _change)):
        if key in values:
            if not isinstance(values[key], dict):
                raise UserError(f"{path}: {key} must map names to what they are")
            values[key] = {name: parse(path, name, value) for name, value in values[key].items()}
    if other is None:
        return values
    if not isinstance(other, str):
        raise UserError(f"{path}: like must be the name of a sweep file, got {other!r}")
    inherited = _read(resolve_config(other, "sweeps", beside=path), (*above, path.resolve()))
    if "axes" in values or "runs" in values:  # they exclude each other
        inherited = {key: value for key, value in inherited.items() if key not in ("axes", "runs", "design")}
    if values.get("tune") == {}:  # nothing is tuned, so nothing says how
        inherited = {key: value for key, value in inherited.items() if not key.startswith("tune")}
    return {**inherited, **values}


def _axis(path: Path, name: str, values: Any) -> dict[Any, Change]:
    if isinstance(values, dict) and values:
        return {label: _change(path, f"{name}={label}", change) for label, change in values.items()}
    if isinstance(values, list) and values and "." in name:
        labels = [value if isinstance(value, (int, float, str)) else json.dumps(value) for value in values]
        if len(set(labels)) < len(labels):
            raise UserError(f"{path}: axis {name} has a value twice: {values}")
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
    settings = flat(value)
    configs = _files(path, settings.pop("config", []))
    match = settings.pop("match", None)
    if match not in (None, *MATCHES):
        raise UserError(f"{path}: match of {name} must be parameters or flops, got {match!r}")
    return Change(configs, settings, match)


def _files(path: Path, names: Any) -> list[str]:
    """Return the paths of files that a sweep file names, relative to it, or of shipped configs."""
    names = names if isinstance(names, list) else [names]
    if any(not isinstance(name, str) for name in names):
        raise UserError(f"{path}: a config must be the name of a file, got {names}")
    return [str(resolve_config(name, beside=path)) for name in names]


@dataclass
class Variant:
    """One network and recipe of a sweep: its name, its value on each axis, and what it changes.

    Attributes:
        reference: the name of the variant that `match` makes it equal to: where there are axes, the one that has the
            first value of each axis whose value says `match`, and the same value of the others.
    """

    name: str
    values: dict[str, Any]
    change: Change
    reference: str


def variants(sweep: Sweep) -> list[Variant]:
    """Return the variants in order, the baseline among them.

    Raises:
        UserError: there is no such baseline.
    """
    if sweep.runs:
        names = [str(name) for name in sweep.runs]
        if sweep.baseline not in (None, *names):
            raise UserError(f"{sweep.path}: baseline {sweep.baseline!r} is not one of its runs")
        reference = sweep.baseline or names[0]
        return [Variant(str(name), {}, change, reference) for name, change in sweep.runs.items()]
    axes = short_names(sweep.axes)
    first = {name: next(iter(values)) for name, values in axes.items()}
    numeric = [name for name, values in axes.items() if all(type(label) in (int, float) for label in values)]

    def name_of(values: dict[str, Any]) -> str:
        chosen = [f"{name}={label}" for name, label in values.items() if name not in numeric and label != first[name]]
        numbers = [f"{name}={values[name]}" for name in numeric]
        alone = len(numeric) == len(axes)
        return ", ".join([*(chosen or ([] if alone else [sweep.baseline or "base"])), *numbers])

    combined = []
    for values, change in combinations(axes):
        if sweep.design == "one_change" and sum(values[name] != first[name] for name in axes) > 1:
            continue
        unmatched = {name: first[name] if axes[name][label].match else label for name, label in values.items()}
        combined.append(Variant(name_of(values), values, change, name_of(unmatched)))
    return combined


def combinations(axes: dict[str, dict[Any, Change]]) -> Iterator[tuple[dict[str, Any], Change]]:
    """Yield every combination of the values of axes with its change; nothing at all once, if there are no axes."""
    for labels in itertools.product(*axes.values()):
        change = Change()
        for values, label in zip(axes.values(), labels, strict=True):
            change = change.then(values[label])
        yield dict(zip(axes, labels, strict=True)), change


def short_names(axes: dict[str, dict[Any, Change]]) -> dict[str, dict[Any, Change]]:
    """Shorten the names of axes to their last parts (short_term_window), where these are all different."""
    short = [name.rsplit(".", 1)[-1] for name in axes]
    return dict(zip(short if len(set(short)) == len(short) else axes, axes.values(), strict=True))


def baseline_of(sweep: Sweep, all_variants: list[Variant]) -> Variant:
    """Return the variant that the others are compared with."""
    return next((v for v in all_variants if sweep.runs and v.name == sweep.baseline), all_variants[0])
