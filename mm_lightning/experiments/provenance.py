"""Where the runs of a study come from: code, hardware, versions, days; and what makes them hard to compare."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mm_lightning.checkpoint.environment import describe_hardware
from mm_lightning.experiments.study import LOSS, Study


def facts(study: Study) -> dict[str, str]:
    """What was compared, how, when and on what."""
    runs = [run for run in study.runs if run.path is not None]
    seeds = sorted({run.seed for run in study.runs})
    days = sorted({state["started"][:10] for run in runs for state in [run.environment] if "started" in state})
    states = [state for run in runs for state in (*run.environment.get("earlier", []), run.environment)]
    packages: dict[str, set[str]] = {}
    for state in states:
        for name, version in {"python": state.get("python"), **state.get("packages", {})}.items():
            packages.setdefault(name, set()).add(str(version))
    axes = "; ".join(f"{axis}: {', '.join(map(str, values))}" for axis, values in study.axes.items())
    found = {
        "Compared": axes or ", ".join(study.variants),
        "Baseline": study.baseline or "",
        "Command": study.command,
        "Stop rule": study.stop,
        "Runs": f"{sum(run.finished for run in study.runs)} of {len(study.runs)} finished",
        "Seeds": ", ".join(map(str, seeds)),
        "Trained": " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "",
        "Code": ", ".join(counted([commit(state) for state in states if state])),
        "Hardware": ", ".join(counted([describe_hardware(state) for state in states if state])),
        "Versions": ", ".join(f"{name} {' and '.join(sorted(v))}" for name, v in packages.items()),
    }
    return {name: text for name, text in found.items() if text}


def commit(environment: dict[str, Any]) -> str:
    """The code of a run, from its environment.json."""
    code = environment.get("code")
    if not code:
        return f"mm-lightning {environment.get('packages', {}).get('mm-lightning')}, not from a git checkout"
    return f"commit {code['commit'][:12]}" + (" with uncommitted changes" if code.get("dirty") else "")


def counted(values: list[str]) -> list[str]:
    """Each once; with how often, where they differ."""
    counts = Counter(values)
    return [f"{value} (in {count} of {len(values)})" if len(counts) > 1 else value for value, count in counts.items()]


def remarks(study: Study) -> list[str]:
    """What makes the runs of a study less comparable than they look."""
    runs = [run for run in study.runs if run.finished]
    found = []
    for what, of in (("code", commit), ("hardware", describe_hardware)):
        if len({of(run.environment) for run in runs if run.environment}) > 1:
            extra = ": tokens/s and training times do not compare" if what == "hardware" else ""
            found.append(f"The runs differ in {what}{extra}.")
    short = [run for run in runs if run.steps and run.step < run.steps]
    if short:
        found.append(
            f"Ended before the steps that were planned (see runs.csv), by a callback or trainer.max_time: {len(short)} "
            f"of {len(runs)} finished runs."
        )
    early = [run for run in runs if run.curve(LOSS) and max(run.curve(LOSS)) < run.step]
    if early:
        found.append(
            f"Last validated before their last step (see runs.csv): {len(early)} of {len(runs)} finished runs."
        )
    return found
