"""`mm sweep`: plan and train the runs of a sweep file, and report on them."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mm_lightning.console import say
from mm_lightning.errors import UserError
from mm_lightning.outputs import write_json
from mm_lightning.ranges import Few, Place
from mm_lightning.redaction import redact_values, redact_words
from mm_lightning.side_files import read_object

if TYPE_CHECKING:
    from mm_lightning.experiments.launchers import Launcher, Work
    from mm_lightning.experiments.sweep_file import Sweep
    from mm_lightning.experiments.sweep_runs import Run

FILE = "sweep.json"


def sweep_command(
    sweep: Place,
    output: Place | None = None,
    dry_run: bool = False,
    jobs: Few = 1,
    executor: Literal["local", "slurm"] = "local",
    settings: dict[str, Any] | None = None,
    measure: bool = True,
) -> None:
    """Train all runs of a sweep file and report on them.

    A sweep file is YAML; configs/sweeps/ has examples, and paths in it are relative to it. Its keys:

      base         the config file of all runs, or a list of them
      settings     single values of all runs: {data.path: data/mine}
      axes         the factors. NAME: {VALUE: CHANGE, ...}, or a dotted key: [VALUE, ...]; the first is the baseline's
      design       grid (default): all combinations of the axes; one_change: the baseline and each other value alone
      runs         instead of axes, the variants one by one. NAME: CHANGE
      baseline     with axes, a name for the first values together; with runs, the one to compare with
      seeds        how many, or a list
      stop         {steps: N}, {tokens: N} or {flops: N}; also an axis: stop.tokens: [N, M]
      tune         settings tuned for each variant, written as axes are: {model.learning_rate: [1e-3, 3e-3, 1e-2]}. The
                   first seed trains all their values, the other seeds the best one
      tune_metric  decides, by its last value: validation/loss by default, or another of metrics.jsonl, as train/tokens
                   where runs end when they have learned; tune_mode: min (default) or max
      tune_stop    a shorter stop rule for tuning, after which all seeds train the best value
      warmup       share of a run's steps; validations: how many, evenly spaced
      slurm        parameters of submitit: {timeout_min: 600, gpus_per_node: 1, slurm_partition: gpu}
      like         another sweep file, from which keys that this one lacks are taken

    A CHANGE is nothing, a config file, a list of them, or {DOTTED.KEY: VALUE, config: FILE, match: parameters}. With
    match (parameters, or flops per token) the width of the persistent memory is solved for, to equal the baseline's.

    Finished runs are never repeated: the same command resumes the others, each from its newest checkpoint. A run that
    fails is reported and the others go on. At the end `mm report` writes OUTPUT/report.

    Args:
        sweep: the sweep file.
        output: folder of the sweep; runs/NAME by default.
        dry_run: print the runs and their estimated cost and time, and stop.
        jobs: runs at once on this machine. Each has its share of the CPU cores, or a GPU.
        executor: local, or slurm: every run a job, with the parameters under `slurm:` in the sweep file.
        settings: single values of all runs, over those of the sweep file: '{"data.path": "data/mine"}'.
        measure: with dry_run, time a training step of each variant on this machine.
    """
    import signal

    from mm_lightning.experiments.launchers import LocalProcesses, Slurm
    from mm_lightning.experiments.sweep_file import read_sweep
    from mm_lightning.experiments.sweep_runs import plan, plan_largest, plan_tuning
    from mm_lightning.signals import interrupt, listen, restore

    declared = read_sweep(sweep)
    declared.settings |= settings or {}
    folder = Path(output or f"runs/{declared.name}")
    if dry_run:
        from mm_lightning.experiments.estimate import show_plan

        runs = plan(declared)
        tuning = plan_tuning(declared, runs)
        show_plan(tuning, plan_largest(runs, tuning), jobs, measure)
        return
    check_overwritable(folder / FILE, sweep)
    stages = Stages(folder, declared)
    with locked(folder):
        launcher = LocalProcesses(jobs) if executor == "local" else Slurm(folder / "slurm", declared.slurm)
        works = stages.begin()
        missing = [name for name in ("matplotlib",) if importlib.util.find_spec(name) is None]
        if missing:
            say(f'the report will need {" and ".join(missing)}: pip install "mm-lightning[report]"')
        # Signals of `kill` and batch systems end a sweep as ctrl-C does. Runs of a sweep in the background of a script,
        # where ctrl-C is ignored, still get it from this process.
        handlers = listen((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), interrupt)
        try:
            carry_out(stages, works, launcher)
        finally:
            restore(handlers)


class Stages:
    """The stages of a sweep in its folder: tuning runs, if settings are tuned, then the final runs.

    Args:
        folder: of the sweep.
        declared: the sweep.
    """

    def __init__(self, folder: Path, declared: Sweep) -> None:
        from mm_lightning.experiments.sweep_runs import plan, plan_final, plan_tuning

        self.folder, self.declared = folder, declared
        self.runs = plan(declared)
        self.tuning = plan_tuning(declared, self.runs)
        self.final = plan_final(self.runs, {})

    def begin(self) -> dict[str, Work]:
        """Prepare the first stage, and return its work by name."""
        return self._prepare("tuning: " if self.tuning else "", self.tuning or self.final)

    def choose(self) -> dict[str, Work]:
        """Choose the best tuned values, prepare the final runs, and return their work by name."""
        from mm_lightning.experiments.read_study import read_study
        from mm_lightning.experiments.sweep_runs import plan_final
        from mm_lightning.experiments.tuning import warnings

        tuning = read_study([self.folder]).tuning
        assert tuning is not None
        best = {variant: run for variant in tuning.variants if (run := tuning.best(variant))}
        for variant, run in best.items():
            values = ", ".join(f"{name}={value}" for name, value in run.tuned.items())
            say(f"{variant}: {values} has the best {tuning.metric}, {tuning.result(run):.4f}")
        for warning in warnings(tuning):
            say(warning)
        self.final = plan_final(self.runs, {variant: run.tuned for variant, run in best.items()})
        return self._prepare("final: ", [run for run in self.final if run.tuned])

    def _prepare(self, stage: str, runs: list[Run]) -> dict[str, Work]:
        works = prepare_folder(self.folder, self.declared, runs, self.final, self.tuning)
        say(f"{stage}{len(runs)} runs of {len({run.variant for run in runs})} variants in {self.folder}")
        return works


def carry_out(stages: Stages, works: dict[str, Work], launcher: Launcher) -> None:
    """Train the runs that are not finished, stage by stage, and write the report.

    Raises:
        UserError: runs failed, or no tuning run of a variant has a result.
    """
    from mm_lightning.experiments.execution import execute
    from mm_lightning.experiments.report import report_command

    outcome = execute(works, launcher)
    if stages.tuning:
        works |= (final := stages.choose())
        later = execute(final, launcher)
        outcome.finished = list({*outcome.finished, *later.finished})
        outcome.failed += later.failed
    try:
        report_command(str(stages.folder))
    except UserError as error:
        raise UserError(f"{len(outcome.finished)} runs are finished, but not reported on: {error}") from error
    if outcome.failed:
        logs = ", ".join(str(works[name].folder / "log.txt") for name in outcome.failed)
        count = f"{len(outcome.failed)} of {len(works)} runs failed"
        raise UserError(f"{count}: their logs are {logs}; the same command tries them again")
    undecided = list(dict.fromkeys(run.variant for run in stages.final if stages.tuning and not run.tuned))
    if undecided:
        raise UserError(
            f"no tuning run of {', '.join(undecided)} has a finite {stages.declared.tune_metric}: the runs.csv of the "
            f"report has the metrics that there are, for tune_metric; or tune other values"
        )


def prepare_folder(
    folder: Path,
    declared: Sweep,
    runs: list[Run],
    final: list[Run] | None = None,
    tuning: Sequence[Run] = (),
) -> dict[str, Work]:
    """Write sweep.json and the config of each run; return the work of each run by name.

    Args:
        folder: of the sweep.
        declared: the sweep.
        runs: the runs that are to be trained.
        final: the final runs, which may not have their tuned values yet; by default `runs`.
        tuning: the tuning runs.

    Raises:
        UserError: a run was begun there with other settings.
    """
    from mm_lightning.experiments.launchers import Work
    from mm_lightning.renamed import current_values
    from mm_lightning.training.config_files import export_secrets
    from mm_lightning.yaml_text import dump_yaml, load_yaml, read_yaml, write_yaml

    works, texts = {}, {}
    for run in runs:
        place = folder / run.folder
        texts[place] = dump_yaml({**run.config, "run": str(place)})
        tried = "tuning, " if run.folder.startswith("tuning/") else ""
        works[f"{tried}{run.label}, seed {run.seed}"] = Work(place, run.steps)
        if (place / "config.yaml").is_file():
            before = current_values(read_yaml(place / "config.yaml"))
            if differing := differences(redact_values(before), redact_values(load_yaml(texts[place], place))):
                raise UserError(
                    f"{place} was begun with other settings ({'; '.join(differing)}): give another --output, or "
                    "delete that folder"
                )
    for place, text in texts.items():
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "config.yaml").is_file():
            write_yaml(place / "config.yaml", load_yaml(text, place))
    export_secrets(load_yaml(text, place) for place, text in texts.items())
    final = runs if final is None else final
    _print_removed(folder, [*final, *tuning])
    write_json(folder / FILE, describe(declared, final, tuning))
    return works


def check_overwritable(path: Path, sweep: str) -> None:
    """Check that the sweep.json in a sweep's folder, if there is one, was written by `mm sweep`.

    Raises:
        UserError: it is the sweep file itself, or was not written by `mm sweep`.
    """
    if not path.is_file():
        return
    content = read_object(path)
    same = os.path.exists(sweep) and os.path.samefile(path, sweep)
    if same or (content and not {"declared", "runs"} <= content.keys()):
        raise UserError(f"{path} exists and mm sweep, which would replace it, did not write it: give another --output")


def _print_removed(folder: Path, runs: list[Run]) -> None:
    """Print the runs of an earlier start that are no longer in the sweep file: the report leaves them out."""
    before = read_object(folder / FILE)
    planned = [*before.get("runs", []), *before.get("tuning", {}).get("runs", [])]
    places = {run.folder for run in runs}
    gone = [run["folder"] for run in planned if run["folder"] not in places and (folder / run["folder"]).is_dir()]
    if gone:
        say(f"no longer in the sweep file, so left out of the report: {', '.join(dict.fromkeys(gone))}")


def describe(declared: Sweep, runs: list[Run], tuning: Sequence[Run] = ()) -> dict[str, Any]:
    """Return the content of sweep.json: the sweep as declared, and its planned runs."""
    from mm_lightning.experiments.sweep_file import baseline_of, short_names, variants

    axes: dict[str, list[Any]] = {}
    for run in runs:
        for axis, value in run.values.items():
            values = axes.setdefault(axis, [])
            values += [value] if value not in values else []
    fields = ["variant", "seed", "folder", "values", "parameters", "training_flops_per_token", "steps", "step_tokens"]
    fields += ["tuned"] if tuning else []
    about_tuning = {
        "axes": {name: list(values) for name, values in short_names(declared.tune).items()},
        "metric": declared.tune_metric,
        "mode": declared.tune_mode,
        "stop": declared.tune_stop,
        "runs": [{key: getattr(run, key) for key in fields} for run in tuning],
    }
    return {
        "name": declared.name,
        "command": shlex.join(redact_words(["mm", *sys.argv[1:]])),
        "declared": asdict(declared),
        "stop": declared.stop,
        "baseline": baseline_of(declared, variants(declared)).name,
        "axes": axes,
        "runs": [{key: getattr(run, key) for key in fields} for run in runs],
        **({"tuning": about_tuning} if tuning else {}),
    }


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Return the common options, apart from `run`, in which two configs differ: "trainer.max_steps 100, now 200".

    An option that only one has was added to the package since. The keys of mappings, such as weights of data sets,
    levels and arguments of a user's class, are no options: these are compared as a whole.
    """
    mapping = name in ("data.path", "model.optimizer", "model.schedule") or name.startswith("model.network.init_args.")
    if isinstance(before, dict) and isinstance(now, dict) and not mapping:
        shared = [key for key in before if key in now and (name or key != "run")]
        return [line for key in shared for line in differences(before[key], now[key], f"{name}.{key}".strip("."))]
    return [] if before == now else [f"{name} {before}, now {now}"]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Context manager that locks a folder against a second `mm sweep`.

    Raises:
        UserError: another one has locked it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another mm sweep is at work in {folder}: wait for it, or give another --output") from None
        yield
