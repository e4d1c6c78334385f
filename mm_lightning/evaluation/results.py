"""The tables and figures of an output folder, from all results that lie in it."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_lightning.checkpoint.run_folder import hardware
from mm_lightning.csv_text import csv_text
from mm_lightning.errors import UserError
from mm_lightning.evaluation.persistent.table import overview
from mm_lightning.evaluation.samples import RESULTS, SETTINGS, read_json
from mm_lightning.evaluation.task import Result, Row, Task, find_task
from mm_lightning.markdown import markdown_table, plain
from mm_lightning.outputs import staged, write_text
from mm_lightning.style import tame
from mm_lightning.terminal import console

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mm_lightning.evaluation.run import Job

MOST_LINES = 40
"""The most lines of a task in the table on the terminal."""
FIELDS = ("task", "run", "group", "metric", "value", "stderr", "count", "data_hash")


def read_results(output: Path) -> list[dict[str, Any]]:
    """Every results.json below an output folder, those of a task together, the oldest first."""
    found = [read_json(path) for path in output.glob(f"*/*/{RESULTS}")]
    return sorted(found, key=lambda result: (result["task"], result["sessions"][0]["started"], result["run"]))


def write_tables(output: Path, order: Sequence[str] = ()) -> list[Path]:
    """Writes results.md, results.csv and figures of all results below a folder.

    Args:
        output: the folder.
        order: names of networks that come first, in this order.

    Returns:
        what was written.
    """
    found = read_results(output)
    place = {name: n for n, name in enumerate(order)}
    found.sort(key=lambda result: (result["task"], place.get(result["run"], len(place))))
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in found:
        groups.setdefault(json.dumps([result["task"], result["settings"]]), []).append(result)
    written, text = [], ["# Results\n", *filter(None, [overview(found)])]
    names: list[str] = []
    for same in groups.values():
        task = remade(same[0])
        results = [Result(r["run"], [Row(**row) for row in r["rows"]], r["network"]) for r in same]
        names.append(task.name)
        suffix = "" if names.count(task.name) == 1 else f"-{names.count(task.name)}"
        figures = draw(task, results)
        for name, figure in figures.items():
            written += save(figure, output / f"{name}{suffix}")
        links = "".join(f"\n![{name}]({name}{suffix}.svg)\n" for name in figures)
        text.append(f"## {task.name}\n\n{settings_line(same[0])}\n\n{task.markdown(results)}{links}\n{networks(same)}")
    texts = {"results.md": "\n".join(text), "results.csv": as_csv(found)}
    for name, content in texts.items():
        write_text(output / name, content)
    return [*(output / name for name in texts), *written]


def check_tables(output: Path) -> None:
    """Check that an output folder's tables, if there are any, are those of evaluations in it.

    Raises:
        UserError: they are somebody else's.
    """
    for table in (output / "results.md", output / "results.csv"):
        if table.exists() and not any(output.glob(f"*/*/{SETTINGS}")):
            raise UserError(f"{table} exists and is of no mm evaluate, which would replace it: give another --output")


def show_results(job: Job) -> None:
    """Print the results of an evaluation as one table: a line for each headline number, a column for each network."""
    from rich import box
    from rich.table import Table

    out = console(width=200)
    names = [subject.name for subject in job.subjects]
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, caption="± half a 95% interval (items)")
    for name in ("task", "group", "metric"):
        drawn.add_column(name, overflow="fold")
    for name in names:
        drawn.add_column(name, justify="right", overflow="fold")
    mixed = []
    for task in job.tasks:
        data = set()
        rows: dict[tuple[str, str], dict[str, str]] = {}
        for subject in job.subjects:
            result = read_json(job.samples(subject, task).folder / RESULTS)
            data.add(result["settings"].get("data_hash"))
            for row in task.headline([Row(**row) for row in result["rows"]]):
                rows.setdefault((group_name(row.group), row.metric), {})[subject.name] = estimate(row)
        if len(data) > 1:
            mixed.append(task.name)
        for n, ((group, metric), cells) in enumerate([*rows.items()][:MOST_LINES]):
            labels = ["" if n else task.name, group, metric]
            drawn.add_row(*labels, *(cells.get(name, "") for name in names))
        if len(rows) > MOST_LINES:
            drawn.add_row("", f"({len(rows) - MOST_LINES} more in results.csv)", "", *("" for _ in names))
    out.print(drawn)
    for name in mixed:
        out.print(f"{name}: the networks were asked on different data, so their numbers do not compare")


def estimate(row: Row) -> str:
    """Return a number, half its 95% interval by the normal distribution, and its items, as in 0.5120 ± 0.0231 (500)."""
    digits = 4 if abs(row.value) < 100 else 1
    interval = "" if row.stderr is None else f" ± {1.96 * row.stderr:,.{digits}f}"
    return f"{row.value:,.{digits}f}{interval} ({row.count:,})"


def group_name(group: dict[str, Any]) -> str:
    """Return a group in words, as in length=4096 depth=0-10%."""
    return " ".join(f"{name}={value}" for name, value in group.items())


def remade(result: dict[str, Any]) -> Task:
    """The task with the settings of a result."""
    fields = {name: value for name, value in result["settings"].items() if name != "version"}
    return find_task(result["task"])(**fields)


def draw(task: Task, results: Sequence[Result]) -> dict[str, Figure]:
    """The figures, if there is something to draw them with."""
    if importlib.util.find_spec("matplotlib") is None:
        return {}
    figures = task.figures(results)
    for figure in figures.values():
        tame(figure)
    return figures


def save(figure: Figure, path: Path) -> list[Path]:
    """Writes PATH.png and PATH.svg; the same figure always gives the same SVG."""
    from matplotlib import rc_context

    files = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}):
        with staged(files[0]) as part:
            figure.savefig(part, format="png", dpi=150)
        image = io.StringIO()
        figure.savefig(image, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    lines = (line.rstrip() for line in image.getvalue().splitlines())
    write_text(files[1], "\n".join(lines) + "\n", exact=True)
    return files


def settings_line(result: dict[str, Any]) -> str:
    """What was asked, in one line."""
    said = [f"{name} {value}" for name, value in result["settings"].items() if name != "version" and value is not None]
    return plain("Settings: " + (", ".join(said) or "none") + ".")


def networks(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: which networks these are, when and on what they were asked."""
    head = ["network", "architecture", "parameters", "training context", "checkpoint", "precision", "asked", "code"]
    lines = []
    for result in results:
        about, last = result["network"], result["sessions"][-1]
        code = last.get("code") or {}
        commit = code.get("commit", "unknown")[:12] + (" with changes" if code.get("dirty") else "")
        where = hardware({"cpu": last.get("cpu", {})} if about["device"] == "cpu" else last)
        lines.append(
            [
                result["run"],
                f"{about['architecture']}, levels {' '.join(about['levels'])}",
                f"{about['parameters']:,}",
                f"{about['context_length']:,}" if about["context_length"] else "unknown",
                f"{Path(about['checkpoint']).name}, weights {about['weights']}",
                about["precision"],
                f"{last['started'][:10]}, {result['seconds']:,.0f} s on {where}",
                commit,
            ]
        )
    return markdown_table(head, lines, len(head)) + "\n"


def as_csv(results: Sequence[dict[str, Any]]) -> str:
    """Every row of every result."""
    lines: list[Sequence[Any]] = [FIELDS]
    for result in results:
        for row in result["rows"]:
            group = group_name(row["group"])
            cells = [row["metric"], row["value"], "" if row["stderr"] is None else row["stderr"], row["count"]]
            lines.append([result["task"], result["run"], group, *cells, result["settings"].get("data_hash") or ""])
    return csv_text(lines)
