"""The report of evaluated networks: a list of all networks, then one section for each kind of task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm_lightning.checkpoint.environment import describe_hardware
from mm_lightning.csv_text import csv_text
from mm_lightning.experiments import page
from mm_lightning.experiments.drawing import si_format
from mm_lightning.experiments.evaluated import (
    default_section,
    in_context_section,
    long_ppl_section,
    long_text_sections,
    persistent_section,
    position_sections,
    published,
)
from mm_lightning.experiments.evaluated.differences import differences
from mm_lightning.experiments.evaluated.estimate_table import EstimateTable
from mm_lightning.experiments.evaluated.evaluations import EvaluationResults, Network
from mm_lightning.experiments.evaluated.report_section import Part, ReportSection
from mm_lightning.experiments.network_looks import Looks, looks_of
from mm_lightning.experiments.provenance import commit, counted
from mm_lightning.style import tokens

SECTIONS: tuple[ReportSection, ...] = (
    persistent_section.SECTION,
    *long_text_sections.SECTIONS,
    in_context_section.SECTION,
    *position_sections.SECTIONS,
    long_ppl_section.SECTION,
    default_section.SECTION,
)
FAR = 3
"""Factor from which on a network is called far from the paper's size."""


def parts(results: EvaluationResults, looks: Looks | None = None) -> list[Part]:
    """Return the report from top to bottom; `looks` are those of other figures of the same page."""
    shown: list[Part | None] = [page.Facts(_facts(results)), page.Heading("Networks"), networks(results)]
    shown += [page.Text(text) for text in _sizes(results.networks)]
    shown += [page.Points(results.notes)] if results.notes else []
    return [part for part in shown if part is not None] + task_sections(results, looks)


def task_sections(results: EvaluationResults, looks: Looks | None = None) -> list[Part]:
    """Return the sections of all tasks, from tables to figures."""
    looks = looks or looks_of(results.networks)
    left = list(results.evaluations)
    shown: list[Part | None] = []
    for section in SECTIONS:
        taken = [e for e in left if section.takes(e)]
        left = [e for e in left if e not in taken]
        for group in results.groups(taken):
            title = section.title + (f": settings {group.number} of {group.groups}" if group.groups > 1 else "")
            label = "Settings" if group.groups == 1 else "Settings (those of the other tables do not compare)"
            shown += [page.Heading(title), page.Text(f"{label}: {group.in_words()}.")]
            shown += section.parts(group, looks)
            shown += [part for task in group.tasks for part in differences(group, task)]
    return [part for part in shown if part is not None]


def networks(results: EvaluationResults) -> EstimateTable:
    """Return a table of all networks, those of the paper beneath."""
    heads = ["network", "architecture", "parameters", "training tokens", "trained at", "forward FLOPs/token"]
    table = EstimateTable("networks", [*heads, "precision", "tasks", "checkpoint"], 2)
    for network in results.networks:
        about = network.about
        numbers = [_short(network.number(n)) for n in ("parameters", "training_tokens")]
        context = tokens(about["context_length"]) if about.get("context_length") else None
        asked = [e for e in results.evaluations if e.network == network]
        partial = sum(e.answers is not None for e in asked)
        tasks = f"{len(asked)}, {partial} partial" if partial else f"{len(asked)}"
        architecture = f"{about.get('architecture', 'unknown')}, levels {' '.join(about.get('levels') or ['unknown'])}"
        place = Path(about["checkpoint"]).name if about.get("checkpoint") else None
        flops = _short(network.number("forward_flops_per_token"))
        table.add(network.name, architecture, *numbers, context, flops, about.get("precision"), tasks, place)
    for theirs in published.NETWORKS:
        size = [_short(theirs.parameters), _short(theirs.tokens), tokens(theirs.context or 0)]
        architecture = "Transformer" if theirs.architecture == "Transformer" else "Memory Mosaics v2"
        table.add(theirs.label, architecture, *size, _short(theirs.forward_flops_per_token), published=True)
    return table


def _short(value: float | None) -> str | None:
    return None if value is None else si_format(value)


def _sizes(networks: Sequence[Network]) -> list[str]:
    """Return how far our networks are from the paper's, in sentences."""
    large = published.V2_LARGE
    assert large.parameters is not None
    assert large.tokens is not None
    small = [n for n in networks if (p := n.number("parameters")) and p * FAR < large.parameters]
    texts = [f"Published: {published.PAPER}. Published numbers are in italics in tables, hollow and gray in figures."]
    if small:
        most = max(small, key=lambda network: network.number("parameters") or 0)
        parameters = most.number("parameters") or 1
        text = f"The largest of {len(small)} networks here" if len(small) > 1 else f"{most.name}"
        fewer = _times(large.parameters / parameters)
        text += f" has {si_format(parameters)} parameters, {fewer} times fewer than v2 large"
        trained = [t for n in small if (t := n.number("training_tokens"))]
        if trained:
            fewer = _times(large.tokens / max(trained))
            text += f"; the longest training is {si_format(max(trained))} tokens, {fewer} times fewer"
        texts.append(f"{text}. What the paper reports at its size is no goal that a network of this size could reach.")
    return texts


def _times(ratio: float) -> str:
    """Return a factor with two significant digits."""
    return f"{float(f'{ratio:.2g}'):,.0f}" if ratio >= 10 else f"{ratio:.1f}"


def _facts(results: EvaluationResults) -> dict[str, str]:
    """Return date, code and hardware of the evaluations."""
    sittings = [e.sessions for e in results.evaluations]
    days = sorted({state["started"][:10] for states in sittings for state in states if "started" in state})
    partial = sum(e.answers is not None for e in results.evaluations)
    total, tasks = len(results.evaluations), len({e.task for e in results.evaluations})
    facts = {
        "Evaluations": f"{tasks} tasks, {len(results.networks)} networks"
        + (f"; {partial} of {total} evaluations are partial" if partial else ""),
        "Asked": " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "",
        "Code": ", ".join(counted(commit, sittings)),
        "Hardware": ", ".join(counted(describe_hardware, sittings)),
    }
    return {name: text for name, text in facts.items() if text}


def write_numbers(path: Path, results: EvaluationResults) -> None:
    """Write every row of every evaluation as it is, with its network and its settings."""
    numbers = ("value", "unit", "low", "high", "stderr", "count")
    heads = ["task", "network", "group", "metric", *numbers, "partial", "settings"]
    lines: list[list[Any]] = [heads]
    for e in results.evaluations:
        settings = "; ".join(f"{name}={value}" for name, value in e.asked().items())
        for row in e.rows:
            group = " ".join(f"{name}={value}" for name, value in row.group.items())
            cells = [e.task, e.network.name, group, row.metric, *(getattr(row, name) for name in numbers)]
            lines.append([*cells, "" if e.answers is None else e.answers, settings])
    path.write_text(csv_text(lines), encoding="utf-8")
