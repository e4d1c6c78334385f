"""The part of a report about tuning: every value of every variant, which was chosen, and what finding it has cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mm_lightning.console import clock
from mm_lightning.experiments.drawing import drawing, file_name, humanize, legend, scale_places, si_format, value_text
from mm_lightning.experiments.network_looks import Looks
from mm_lightning.experiments.page import NOTHING, Block, Drawing, Heading, Points, Table, Text
from mm_lightning.experiments.study import Run, Study, Tuning
from mm_lightning.style import figure_of

CHOSEN = " *"
"""Mark of the chosen value in the grid."""


def tuning_blocks(study: Study, looks: Looks) -> list[Block]:
    """Return the section of a report about the tuning of its sweep; nothing without tuning."""
    tuning = study.tuning
    if tuning is None:
        return []
    seed, best = tuning.runs[0].seed, "lowest" if tuning.mode == "min" else "highest"
    length = f" for {tuning.shortened}" if tuning.shortened else ""
    text = (
        f"Every variant was trained{length} with each value of {' and '.join(tuning.axes)}, with seed {seed}. The "
        f"value with the {best} last {humanize(tuning.metric)} ({CHOSEN.strip()}) is that of the final runs. Runs that "
        f"failed, diverged or are unfinished are never chosen."
    )
    blocks: list[Block] = [Heading("Tuning"), Text(text), Table(*grid_table(tuning))]
    notes = warnings(tuning)
    blocks += [Points(notes)] if notes else []
    blocks += [figure for axis in tuning.axes if (figure := _against_values(tuning, axis, looks)) is not None]
    return [*blocks, Heading("Cost of tuning", 3), *_costs(study, tuning)]


def grid_table(tuning: Tuning) -> tuple[list[str], list[list[str]]]:
    """Return columns and cells of the grid: a line a variant, a column each combination of values."""
    combinations = _unique([run.tuned for run in tuning.runs])
    columns = [", ".join(f"{name}={value}" for name, value in tuned.items()) for tuned in combinations]
    lines = []
    for variant in tuning.variants:
        best, runs = tuning.best(variant), tuning.of(variant)
        cells = [next((_cell(tuning, run, best) for run in runs if run.tuned == t), NOTHING) for t in combinations]
        lines.append([variant, *cells])
    return [f"{humanize(tuning.metric)} with", *columns], lines


def _unique(items: list[Any]) -> list[Any]:
    return [item for n, item in enumerate(items) if item not in items[:n]]


def _cell(tuning: Tuning, run: Run, best: Run | None) -> str:
    value = tuning.result(run)
    if value is None:
        return run.status if not run.finished else f"not logged ({run.status})"
    return value_text(value) + (CHOSEN if run is best else "")


def warnings(tuning: Tuning) -> list[str]:
    """Return sentences about choices at the edge of the values, and about runs without a result."""
    sentences = []
    for variant in tuning.variants:
        best, runs = tuning.best(variant), tuning.of(variant)
        missing = [run for run in runs if tuning.result(run) is None]
        if best is None:
            sentences.append(f"{variant}: nothing is chosen, as none of its {len(runs)} tuning runs has a result.")
        for name, values in tuning.axes.items() if best is not None else ():
            if len(values) < 2 or any(type(value) not in (int, float) for value in values):
                continue
            chosen = best.tuned[name]  # type: ignore[union-attr]
            if chosen in (min(values), max(values)):
                end, more = ("smallest", "smaller") if chosen == min(values) else ("largest", "larger")
                sentences.append(
                    f"{variant}: its best {name}, {chosen}, is the {end} that was tried: a {more} one may be better. "
                    f"Add some and start the same mm sweep again, which trains these alone."
                )
        for run in missing:
            line = f": {run.last_line[:160]}" if run.last_line and run.status == "failed" else ""
            sentences.append(f"{variant}: the tuning run {run.name} has no result, it is {run.status}{line}.")
    return sentences


def _against_values(tuning: Tuning, axis: str, looks: Looks) -> Drawing | None:
    """Draw the metric against the values of one setting: of several settings, the best over the others."""
    values = tuning.axes[axis]
    numeric = all(type(value) in (int, float) for value in values)
    places = {value: value if numeric else n for n, value in enumerate(values)}
    if len(places) < 2:
        return None
    better: Callable[..., float] = min if tuning.mode == "min" else max
    figure, axes = figure_of(8.4, 4.2)
    for variant in tuning.variants:
        line: dict[float, float] = {}
        without: set[float] = set()
        for run in tuning.of(variant):
            place, value = places[run.tuned[axis]], tuning.result(run)
            if value is not None:
                line[place] = better(value, line.get(place, value))
            elif run.path is not None:
                without.add(place)
        look = {**looks[variant], "markersize": 5, "linewidth": 1.5}
        axes.plot(sorted(line), [line[place] for place in sorted(line)], label=variant, **look)
        best = tuning.best(variant)
        if best is not None:
            place = places[best.tuned[axis]]
            ring = {"marker": "o", "markersize": 12, "markerfacecolor": "none", "linestyle": ""}
            axes.plot([place], [line[place]], **{**ring, "color": look["color"]})
        failed = sorted(without - line.keys())
        if failed:
            cross = {"marker": "x", "markersize": 7, "linestyle": "", "color": look["color"]}
            axes.plot(failed, [0.97] * len(failed), transform=axes.get_xaxis_transform(), **cross)
    if numeric:
        scale_places(axes, sorted(places.values()))
    else:
        axes.set_xticks(range(len(values)), [str(value) for value in values])
    axes.set(xlabel=axis, ylabel=humanize(tuning.metric))
    legend(axes)
    others = ", the best over the other tuned settings" if len(tuning.axes) > 1 else ""
    caption = (
        f"Last {humanize(tuning.metric)} of the tuning runs against {axis}{others}. Rings: the chosen value of each "
        f"variant; crosses at the top: failed, diverged or unfinished."
    )
    return drawing(figure, f"tuning-{file_name(axis)}", caption)


def _costs(study: Study, tuning: Tuning) -> list[Block]:
    """Return a table of what tuning and final runs have cost so far, and what it leaves out."""
    lines = []
    for title, runs in (("tuning", tuning.runs), ("final runs", study.runs), ("together", study.all_runs)):
        begun = [run for run in runs if run.path is not None]
        tokens = math.fsum(run.tokens or 0 for run in begun)
        flops = math.fsum(run.training_flops or 0 for run in begun)
        seconds = math.fsum(run.seconds_at(run.step) or 0 for run in begun)
        lines.append([title, str(len(begun)), si_format(tokens), si_format(flops), clock(seconds)])
    both = len(tuning.runs) + len(study.runs) - len(study.all_runs)
    text = "Training time is without validation and checkpoints. Failed and diverged runs count as far as they came."
    if both:
        text += f" {both} tuning runs are final runs too, and count once in the last line."
    return [Table(["", "runs", "tokens", "training FLOPs", "training time"], lines), Text(text)]


def tuning_limits(tuning: Tuning) -> str:
    """Return what the choice of tuned values does to the intervals over seeds."""
    seed, names, count = tuning.runs[0].seed, " and ".join(tuning.axes), len(_unique([r.tuned for r in tuning.runs]))
    text = f"Means and intervals over seeds are those of the chosen {names} only: they do not cover the choice itself. "
    if tuning.shortened:
        return text + (
            f"It was made with seed {seed} after {tuning.shortened}: the best value there may not be that of a whole "
            f"run, and the final run with seed {seed} is not independent of the choice."
        )
    return text + (
        f"The run of seed {seed} is the best of {count} with that seed, so that it looks better than a new seed would, "
        f"in every variant: the other seeds are free of this bias."
    )
