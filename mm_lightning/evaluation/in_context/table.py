"""Tables of in-context accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mm_lightning.evaluation.in_context.accuracy import Answer, macro, micro
from mm_lightning.evaluation.task import Record, Result, Row
from mm_lightning.markdown import markdown_table

WAYS = ("likelihood", "likelihood_by_length", "greedy")
"""To score an answer; each has a micro accuracy of this name and a macro one."""

INSIDE = "inside"
"""The share of greedy answers that are labels at all."""

BEST = "best"

NOTE = (
    "Micro accuracy in %, with the standard error over questions and sets of demonstrations. The best strategy of each "
    "line is chosen on these very questions, as in the paper. Macro accuracies, and the share of greedy answers that "
    "are labels at all, are in results.csv."
)


def accuracy_rows(records: Sequence[Record]) -> list[Row]:
    """Accuracies by labels, shots and strategy, over questions and sets of demonstrations.

    The strategy `best` is, for each metric, the best of the others at that number of shots, as the paper has it.
    """
    groups: dict[tuple[str, int, str], list[Record]] = {}
    for record in records:
        group = record["group"]
        groups.setdefault((group["labels"], group["shots"], group["strategy"]), []).append(record)
    rows: dict[tuple[str, int], list[list[Row]]] = {}
    for (labels, shots, strategy), found in groups.items():
        rows.setdefault((labels, shots), []).append(
            _rows({"labels": labels, "shots": shots, "strategy": strategy}, found)
        )
    table = []
    for strategies in rows.values():
        table += [row for of_strategy in strategies for row in of_strategy]
        for same in zip(*strategies, strict=True):
            top = max(same, key=lambda row: row.value)
            if top.metric == INSIDE:
                continue
            table.append(Row({**top.group, "strategy": BEST}, top.metric, top.value, top.stderr, top.count))
    return table


def _rows(group: dict[str, Any], records: Sequence[Record]) -> list[Row]:
    rows = []
    for score in (*WAYS, INSIDE):
        answers = [
            Answer(r["group"]["seed"], r["key"].rpartition("/")[2], r["references"][0], float(r["scores"][score]))
            for r in records
        ]
        rows.append(Row(group, score, *micro(answers), len(answers)))
        if score != INSIDE:
            rows.append(Row(group, f"{score}_macro", *macro(answers), len(answers)))
    return rows


def accuracy_table(results: Sequence[Result]) -> str:
    """Markdown: for each way to score and each network a line by labels and shots, a column for each strategy; in %."""
    found: dict[tuple[str, str, str, int], dict[str, Row]] = {}
    for result in results:
        for row in result.rows:
            line = row.metric, result.run, row.group["labels"], row.group["shots"]
            found.setdefault(line, {})[row.group["strategy"]] = row
    strategies = list(dict.fromkeys(name for cells in found.values() for name in cells))
    head = ["scored by", "network", "labels", "shots", *strategies]
    lines = []
    for metric in WAYS:
        for (of, run, labels, shots), cells in found.items():
            if of == metric:
                lines.append([metric, run, labels, str(shots), *(_cell(cells.get(name)) for name in strategies)])
    return f"{markdown_table(head, lines, 4)}\n\n{NOTE}\n"


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{100 * row.value:.1f}" + ("" if row.stderr is None else f" ± {100 * row.stderr:.1f}")
