"""The provenance of a study's runs: code, hardware, versions and dates; and remarks on runs that do not compare."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from mm_lightning.checkpoint.environment import describe_hardware
from mm_lightning.experiments.study import LOSS, Run, Study


def facts(study: Study) -> dict[str, str]:
    """Return the facts at the head of a report, by title: axes, baseline, command, seeds, dates, code, hardware."""
    runs = [run for run in study.all_runs if run.path is not None]
    seeds = sorted({run.seed for run in study.runs})
    sittings = [_sittings(run) for run in runs]
    states = list(itertools.chain(*sittings))
    days = sorted({state["started"][:10] for state in states if "started" in state})
    packages: dict[str, set[str]] = {}
    for state in states:
        for name, version in {"python": state.get("python"), **state.get("packages", {})}.items():
            packages.setdefault(name, set()).add(str(version))
    axes = "; ".join(f"{axis}: {', '.join(map(str, values))}" for axis, values in study.axes.items())
    tuned = study.tuning.axes if study.tuning else {}
    by_title = {
        "Compared": axes or ", ".join(study.variants),
        "Tuned": "; ".join(f"{name}: {', '.join(map(str, values))}" for name, values in tuned.items()),
        "Baseline": study.baseline or "",
        "Command": study.command,
        "Stop rule": study.stop,
        "Runs": f"{sum(run.finished for run in study.runs)} of {len(study.runs)} finished",
        "Seeds": ", ".join(map(str, seeds)),
        "Trained": " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "",
        "Code": ", ".join(counted(commit, sittings)),
        "Hardware": ", ".join(counted(describe_hardware, sittings)),
        "Versions": ", ".join(f"{name} {' and '.join(sorted(v))}" for name, v in packages.items()),
    }
    return {title: text for title, text in by_title.items() if text}


def commit(environment: dict[str, Any]) -> str:
    """Describe the code of a run, from its environment.json."""
    code = environment.get("code")
    if not code:
        return f"mm-lightning {environment.get('packages', {}).get('mm-lightning')}, not from a git checkout"
    return f"commit {code['commit'][:12]}" + (" with uncommitted changes" if code.get("dirty") else "")


def _sittings(run: Run) -> list[dict[str, Any]]:
    """Return the environment of each sitting of a run: several where it was resumed."""
    return [state for state in (*run.environment.get("earlier", []), run.environment) if state]


def counted(describe: Callable[[dict[str, Any]], str], sittings: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    """Return each description of the sittings of runs once, with the number of runs that have it where they differ."""
    counts = Counter(text for states in sittings for text in dict.fromkeys(map(describe, states)))
    total = sum(map(bool, sittings))
    return [f"{text} (in {count} of {total})" if len(counts) > 1 else text for text, count in counts.items()]


def remarks(study: Study) -> list[str]:
    """Return sentences about differences between the runs of a study that make them hard to compare."""
    runs = [run for run in study.runs if run.finished]
    sentences = []
    for what, describe in (("code", commit), ("hardware", describe_hardware)):
        if len(set(map(describe, itertools.chain(*map(_sittings, runs))))) > 1:
            extra = ": tokens/s and training times do not compare" if what == "hardware" else ""
            sentences.append(f"The runs differ in {what}{extra}.")
    ended_early = [run for run in runs if run.steps and run.step < run.steps]
    if ended_early:
        sentences.append(
            f"Ended before the steps that were planned (see runs.csv), by a callback or trainer.max_time: "
            f"{len(ended_early)} of {len(runs)} finished runs."
        )
    not_validated = [run for run in runs if run.curve(LOSS) and max(run.curve(LOSS)) < run.step]
    if not_validated:
        sentences.append(
            f"Last validated before their last step (see runs.csv): {len(not_validated)} of {len(runs)} finished runs."
        )
    return sentences
