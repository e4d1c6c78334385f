"""`mm report`: from the run folders of a sweep to a table, figures and a page."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from mm_lightning.errors import UserError
from mm_lightning.experiments import page
from mm_lightning.experiments.figures import draw
from mm_lightning.experiments.hparams import write_hparams
from mm_lightning.experiments.provenance import facts, remarks
from mm_lightning.experiments.read_study import read_study
from mm_lightning.experiments.statistics import Row, summarise, t_quantile
from mm_lightning.experiments.study import Run, Study
from mm_lightning.experiments.tables import (
    NOTHING,
    reached,
    reference_rows,
    run_record,
    show,
    table,
    variant_record,
    write_csv,
)


def report_command(folders: list[str] | str, output: str | None = None, baseline: str | None = None) -> None:
    """Compares runs: table, learning curves and a page (index.html) from run folders, as in `mm report runs/ablation`.

    mm report runs/ablation                                       a sweep's folder
    mm report runs/quickstart runs/transformer --output report    run folders of `mm fit`, found at any depth

    Writes report.md, report.csv (a row a variant), runs.csv (a row a run), figures/*.svg and index.html, which needs no
    other file and no network; prints the table. Means are of finished runs; runs that did not finish or diverged are
    listed. Differences from the baseline are paired by seed. Settings and final metrics also go to TensorBoard's
    HPARAMS tab: tensorboard --logdir runs/ablation.

    Args:
        folders: a sweep's folder, or any folders that contain run folders.
        output: where to write; by default report/ in the folder.
        baseline: the variant that others are compared with; by default the sweep's, without a sweep the first one.
    """
    study, rows, place = _write([folders] if isinstance(folders, str) else folders, output, baseline)
    show(study, rows)
    print(f"{place / 'index.html'}, report.md, report.csv, runs.csv and figures/ beside it")


def write_report(folder: str | Path | list[str], output: str | Path | None = None, baseline: str | None = None) -> Path:
    """Writes what `mm report` writes and prints nothing.

    Args:
        folder: a sweep's folder, or one or several that contain run folders.
        output: where to write; by default report/ in the folder.
        baseline: the variant that others are compared with; by default the sweep's, without a sweep the first one.

    Returns:
        The report's folder.

    Raises:
        UserError: there are no runs, or matplotlib or scipy are not installed.
    """
    return _write(folder if isinstance(folder, list) else [folder], output, baseline)[2]


def _write(folders: list[Any], output: str | Path | None, baseline: str | None) -> tuple[Study, list[Row], Path]:
    if output is None and len(folders) != 1:
        raise UserError("several folders make one report: say where it goes, as in --output runs/report")
    study = read_study([Path(folder) for folder in folders], baseline)
    rows = summarise(study)
    place = Path(output) if output is not None else Path(folders[0]) / "report"
    try:
        (place / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {place}: {error.strerror}") from error
    options = {"output": output, "baseline": baseline}
    words = [word for name, value in options.items() if value for word in (f"--{name}", str(value))]
    blocks = _blocks(study, rows, shlex.join(["mm", "report", *map(str, folders), *words]))
    for block in blocks:
        if isinstance(block, page.Figure):
            (place / "figures" / f"{block.name}.svg").write_text(block.svg, encoding="utf-8")
    (place / "report.md").write_text(page.markdown(study.name, blocks), encoding="utf-8")
    (place / "index.html").write_text(page.page(study.name, blocks), encoding="utf-8")
    write_csv(place / "report.csv", [variant_record(study, row) for row in rows])
    write_csv(place / "runs.csv", [run_record(run) for run in study.runs])
    for run in study.runs:
        if run.finished and run.path is not None and os.access(run.path, os.W_OK):
            write_hparams(run.path, hparam_values(run), run.final())
    return study, rows, place


def hparam_values(run: Run) -> dict[str, Any]:
    """What TensorBoard's HPARAMS tab says of a run."""
    cost = {"parameters": run.parameters, "training_flops_per_token": run.training_flops_per_token}
    axes = {f"axis {axis}": value for axis, value in run.values.items()}
    return {"variant": run.variant, "seed": run.seed, **axes, **cost}


# The document


def _blocks(study: Study, rows: list[Row], command: str) -> list[page.Block]:
    """The report from top to bottom."""
    blocks: list[page.Block] = [page.Facts(facts(study))]
    blocks += [page.Heading("Results"), page.Table(*table(study, rows))]
    blocks.append(page.Text(_reading(study, rows)))
    references = reference_rows(study)
    if references:
        blocks.append(page.Table(["to compare with", "metric", "value"], references, words=True))
    notes = [*remarks(study), *study.notes]
    blocks += [page.Points(notes)] if notes else []
    rest = [run for run in study.runs if not run.finished]
    if rest:
        blocks.append(page.Heading("Runs that do not count"))
        blocks.append(page.Text(f"{len(rest)} of {len(study.runs)} runs are in no mean and in no figure."))
        lines = [[run.name, run.status, reached(run), run.last_line[:160] or NOTHING] for run in rest]
        blocks.append(page.Table(["run", "status", "step", "last line of its log"], lines, words=True))
    blocks += [page.Heading("Figures"), *draw(study, rows)]
    blocks += [page.Heading("To do it again"), page.Code("\n".join(part for part in (study.command, command) if part))]
    return [*blocks, page.Heading("What this can show"), page.Points(_limits(study, rows))]


def _reading(study: Study, rows: list[Row]) -> str:
    """What the numbers of the table are."""
    text = "Mean ± sample standard deviation over seeds of the last logged value."
    if not any(row.difference for row in rows):
        return text
    return text + (
        f" Differences in validation loss are from {study.reference_in_words}, paired by seed, with the 95% confidence "
        f"interval of the paired t: below 0 is better."
    )


def _limits(study: Study, rows: list[Row]) -> list[str]:
    """What a few seeds can show, in plain words."""
    most = max((len(row.difference.values) for row in rows if row.difference), default=0)
    found = []
    if most == 1:
        found.append("With one seed there is no telling a difference from the luck of the seed: no interval is given.")
    elif most > 1:
        found.append(
            f"The intervals cover the noise of the seed only (initial weights, order of the data), from {most} seeds. "
            f"With {most}, an interval reaches {t_quantile(most - 1):.2f} standard errors to each side: small "
            f"differences stay open. An interval that holds 0 does not say that two variants are equal."
        )
        compared = sum(row.difference is not None for row in rows)
        if compared > 1:
            found.append(
                f"{compared} variants are compared with a baseline: about one in twenty such intervals misses the "
                f"true difference, and nothing here corrects for looking at several."
            )
    found.append(
        "They do not cover the choice of data, nor hyper-parameters that may suit one variant better than another, nor "
        "what happens at other sizes and lengths of training."
    )
    found.append("Tokens/s and training time belong to the hardware above and to whatever else ran on it.")
    return found
