"""`mm report`: from the run folders of a sweep, or what `mm evaluate` wrote, to tables, figures and a page."""

from __future__ import annotations

import importlib.util
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_lightning.console import say
from mm_lightning.errors import UserError
from mm_lightning.experiments import page
from mm_lightning.experiments.evaluated.estimate_table import EstimateTable
from mm_lightning.experiments.evaluated.evaluations import EvaluationResults
from mm_lightning.experiments.evaluated.load_results import load_results
from mm_lightning.experiments.evaluated.report_section import Part
from mm_lightning.experiments.figures import draw
from mm_lightning.experiments.hparams import write_hparams
from mm_lightning.experiments.network_looks import Looks, looks_of
from mm_lightning.experiments.provenance import facts, remarks
from mm_lightning.experiments.read_study import has_runs, read_study
from mm_lightning.experiments.statistics import Row, summarize, t_quantile
from mm_lightning.experiments.study import Run, Study
from mm_lightning.experiments.tables import (
    curve_record,
    finite,
    reached,
    reference_rows,
    run_record,
    show,
    table,
    tuning_record,
    variant_record,
    write_csv,
)
from mm_lightning.experiments.tuning import tuning_blocks, tuning_limits
from mm_lightning.outputs import FolderKind, check_folder, staged, write_json, write_text
from mm_lightning.ranges import Name, Place

REPORT = FolderKind(
    "a report",
    "report.md",
    (
        "index.html",
        "report.csv",
        "runs.csv",
        "runs.json",
        "numbers.csv",
        "tables/*.csv",
        "figures/*.svg",
        "figures/*.png",
    ),
    shared=True,
)
"""The folders that `mm report` writes."""


def report_command(
    folders: list[Place] | Place, output: Place | None = None, baseline: Name | None = None, overwrite: bool = False
) -> None:
    """Compare runs and evaluations: tables, figures and a page (index.html), as in `mm report runs/ablation`.

    mm report runs/ablation                                       a sweep's folder
    mm report runs/quickstart runs/transformer --output report    run folders of `mm fit`, found at any depth
    mm report results                                             a folder that `mm evaluate` wrote

    Of runs: report.csv (a row a variant), runs.csv (a row a run), runs.json (with their curves) and figures of these.
    Means are of finished runs; runs that did not finish or diverged are listed. Differences from the baseline are
    paired by seed. Settings and final metrics also go to TensorBoard's HPARAMS tab: tensorboard --logdir runs/ablation.

    Of evaluations: the forms of the paper, with 95% confidence intervals and the paper's published numbers beside ours:
    benchmarks, new knowledge by length and depth, in-context accuracy by shots, all of it against training tokens,
    FLOPs, parameters and steps of fine-tuning. tables/*.csv has the tables, numbers.csv every number of every task.
    What was asked under different settings stands in separate tables.

    Both: report.md, figures/*.svg (of evaluations *.png too) and index.html, which needs no other file and no network.

    Args:
        folders: a sweep's folder, or any folders that contain run folders or results of `mm evaluate`.
        output: where to write; by default report/ in the folder, whose report is written anew.
        baseline: the variant, or the evaluated network, that others are compared with; by default the sweep's, else the
            first one.
        overwrite: replace an existing output.
    """
    report = _write([folders] if isinstance(folders, str) else folders, output, baseline, overwrite)
    written = ["report.md"]
    if report.study is not None:
        show(report.study, report.rows)
        written += ["report.csv", "runs.csv", "runs.json"]
    if report.results.evaluations:
        for part in report.evaluated:
            if isinstance(part, EstimateTable) and part.name != "networks":
                part.show()
        for note in report.results.notes:
            say(note)
        written += ["tables/", "numbers.csv"]
    say(f"{report.place / 'index.html'}, {', '.join(written)} and figures/ beside it")


def write_report(
    folder: str | Path | list[str],
    output: str | Path | None = None,
    baseline: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the files of `mm report` and print nothing.

    Args:
        folder: a sweep's folder, or one or several that contain run folders or results of `mm evaluate`.
        output: where to write; by default report/ in the folder.
        baseline: the variant, or the evaluated network, that others are compared with; by default the sweep's, else the
            first one.
        overwrite: replace an existing output.

    Returns:
        The report's folder.

    Raises:
        UserError: there are neither runs nor evaluations, or matplotlib is not installed.
    """
    return _write(folder if isinstance(folder, list) else [folder], output, baseline, overwrite).place


@dataclass(frozen=True)
class _Report:
    """The content of a report, and its folder."""

    study: Study | None
    rows: list[Row]
    results: EvaluationResults
    evaluated: list[Part]
    place: Path


def _write(folders: list[Any], output: str | Path | None, baseline: str | None, overwrite: bool) -> _Report:
    if output is None and len(folders) != 1:
        raise UserError("several folders make one report: say where it goes, as in --output runs/report")
    paths = [Path(folder) for folder in folders]
    target = check_folder(paths[0] / "report" if output is None else output, REPORT, overwrite or output is None, paths)
    trained = [path for path in paths if has_runs(path)]
    results = load_results(paths)
    for path in paths:
        if path not in trained and not any(path in e.path.parents for e in results.evaluations):
            raise UserError(
                f"{path} has no runs (neither a sweep.json nor folders with config.yaml and metrics.jsonl) and no "
                f"evaluations (folders NETWORK/TASK of mm evaluate)"
            )
    network = results.find(baseline) if baseline is not None else None
    if network is not None:
        results.put_first(network)
    elif baseline is not None and not trained:
        names = ", ".join(network.name for network in results.networks)
        raise UserError(f"no network is called --baseline {baseline}: there are {names}")
    study = read_study(trained, baseline if network is None else None) if trained else None
    rows = summarize(study) if study is not None else []
    options = {"output": output, "baseline": baseline}
    words = [word for name, value in options.items() if value for word in (f"--{name}", str(value))]
    command = shlex.join(["mm", "report", *map(str, folders), *words])
    with staged(target) as place:
        (place / "figures").mkdir(parents=True)
        evaluated = _fill(place, paths, command, study, rows, results)
    return _Report(study, rows, results, evaluated, target.name)


def _fill(
    place: Path, paths: list[Path], command: str, study: Study | None, rows: list[Row], results: EvaluationResults
) -> list[Part]:
    """Write a report into a folder; return its part about evaluations."""
    looks = looks_of(results.networks, study)
    evaluated = _write_evaluated(place, results, looks) if results.evaluations else []
    blocks = _blocks(study, rows, command, looks) if study is not None else []
    blocks += [page.Heading("Evaluation")] if study is not None and evaluated else []
    blocks += [part.block() if isinstance(part, EstimateTable) else part for part in evaluated]
    blocks += [page.Heading("To do it again"), page.Code(command)] if study is None else []
    title = study.name if study is not None else ", ".join(path.resolve().name for path in paths)
    for block in blocks:
        if isinstance(block, page.Drawing):
            (place / "figures" / f"{block.name}.svg").write_text(block.svg, encoding="utf-8")
            if block.png:
                (place / "figures" / f"{block.name}.png").write_bytes(block.png)
    write_text(place / "report.md", page.markdown(title, blocks))
    write_text(place / "index.html", page.page(title, blocks))
    if study is not None:
        _write_runs(place, study, rows)
    return evaluated


def _write_runs(place: Path, study: Study, rows: list[Row]) -> None:
    """Write runs as CSV, as JSON with their curves, and for TensorBoard."""
    write_csv(place / "report.csv", [variant_record(study, row) for row in rows])
    runs = [run_record(study, run) for run in study.all_runs]
    write_csv(place / "runs.csv", runs)
    curves = [{"curves": curve_record(run)} for run in study.all_runs]
    published = {"source": study.source, **study.published} if study.source else {}
    whole = [{name: finite(value) for name, value in run.items()} for run in runs]
    both = [{**run, **more} for run, more in zip(whole, curves, strict=True)]
    write_json(place / "runs.json", {"facts": facts(study), "published": published, "runs": both})
    for run in study.all_runs:
        if run.finished and run.path is not None and os.access(run.path, os.W_OK):
            write_hparams(run.path, hparam_values(study, run), run.final())


def _write_evaluated(place: Path, results: EvaluationResults, looks: Looks) -> list[Part]:
    """Write evaluations as CSV; return what the page says of them."""
    from mm_lightning.experiments.evaluated.evaluation_report import parts, write_numbers

    if importlib.util.find_spec("matplotlib") is None:
        raise UserError('reports need matplotlib: pip install "mm-lightning[report]"')
    evaluated = parts(results, looks)
    (place / "tables").mkdir(exist_ok=True)
    for part in evaluated:
        if isinstance(part, EstimateTable):
            (place / "tables" / f"{part.name}.csv").write_text(part.csv(), encoding="utf-8")
    write_numbers(place / "numbers.csv", results)
    return evaluated


def hparam_values(study: Study, run: Run) -> dict[str, Any]:
    """Return the settings of a run for TensorBoard's HPARAMS tab."""
    cost = {"parameters": run.parameters, "training_flops_per_token": run.training_flops_per_token}
    axes = {f"axis {axis}": value for axis, value in run.values.items()}
    return {"variant": run.variant, "seed": run.seed, **tuning_record(study, run), **axes, **cost}


# The document


def _blocks(study: Study, rows: list[Row], command: str, looks: Looks) -> list[page.Block]:
    """Return the report of runs from top to bottom."""
    blocks: list[page.Block] = [page.Facts(facts(study))]
    blocks += [page.Heading("Results"), page.Table(*table(study, rows))]
    blocks.append(page.Text(_reading(study, rows)))
    blocks += [page.Text(f"Published: {study.source}.")] if study.source else []
    references = reference_rows(study)
    if references:
        blocks.append(page.Table(["to compare with", "metric", "value"], references, words=True))
    notes = [*remarks(study), *study.notes]
    blocks += [page.Points(notes)] if notes else []
    rest = [run for run in study.runs if not run.finished]
    if rest:
        blocks.append(page.Heading("Runs that do not count"))
        blocks.append(page.Text(f"{len(rest)} of {len(study.runs)} runs are in no mean and in no figure."))
        lines = [[run.name, run.status, reached(run), run.last_line[:160] or page.NOTHING] for run in rest]
        blocks.append(page.Table(["run", "status", "step", "last line of its log"], lines, words=True))
    blocks += tuning_blocks(study, looks)
    blocks += [page.Heading("Figures"), *draw(study, rows, looks)]
    blocks += [page.Heading("To do it again"), page.Code("\n".join(part for part in (study.command, command) if part))]
    return [*blocks, page.Heading("What this can show"), page.Points(_limits(study, rows))]


def _reading(study: Study, rows: list[Row]) -> str:
    """Return what the numbers of the table are, in words."""
    text = "Mean ± sample standard deviation over seeds of the last logged value."
    if not any(row.difference for row in rows):
        return text
    return text + (
        f" Differences in validation loss are from {study.reference_in_words}, paired by seed, with the 95% confidence "
        f"interval of the paired t: below 0 is better."
    )


def _limits(study: Study, rows: list[Row]) -> list[str]:
    """Return what a few seeds can show, in sentences."""
    most = max((len(row.difference.values) for row in rows if row.difference), default=0)
    sentences = []
    if most == 1:
        sentences.append(
            "With one seed there is no telling a difference from the luck of the seed: no interval is given."
        )
    elif most > 1:
        sentences.append(
            f"The intervals cover the noise of the seed only (initial weights, order of the data), from {most} seeds. "
            f"With {most}, an interval reaches {t_quantile(most - 1):.2f} standard errors to each side: small "
            f"differences stay open. An interval that holds 0 does not say that two variants are equal."
        )
        compared = sum(row.difference is not None for row in rows)
        if compared > 1:
            sentences.append(
                f"{compared} variants are compared with a baseline: about one in twenty such intervals misses the "
                f"true difference, and nothing here corrects for looking at several."
            )
    sentences += [tuning_limits(study.tuning)] if study.tuning else []
    other = "other " if study.tuning else ""
    sentences.append(
        f"They do not cover the choice of data, nor {other}hyper-parameters that may suit one variant better than "
        f"another, nor what happens at other sizes and lengths of training."
    )
    sentences.append("Tokens/s and training time belong to the hardware above and to whatever else ran on it.")
    return sentences
