"""RACE's articles with their questions, in the form that the harness' `race` takes: `article` and `problems`."""

from __future__ import annotations

import ast
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

FIELDS = ("question", "options", "answer")


def articles(documents: Dataset) -> Dataset:
    """Return one document an article: of its questions the last is asked, those before it are shown with their answers.

    Args:
        documents: of one question each, those of an article together (`article`, `question`, `options`, `answer`), or
            of one article each (`article`, `problems`).
    """
    return _dataset([{"article": article, "problems": str(problems)} for article, problems in _grouped(documents)])


def questions(documents: Dataset) -> Dataset:
    """Return one document a question, which is asked by itself; arguments as of :func:`articles`."""
    return _dataset(
        [
            {"article": article, "problems": str([problem])}
            for article, problems in _grouped(documents)
            for problem in problems
        ]
    )


def _grouped(documents: Dataset) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return each article with its questions.

    Raises:
        ValueError: a question is not whole; it names the row.
    """
    if "problems" in documents.column_names:
        return [
            (row["article"], [_whole(problem, number) for problem in ast.literal_eval(row["problems"])])
            for number, row in enumerate(documents, 1)
        ]
    return [
        (article, [_whole(row, number) for number, row in rows])
        for article, rows in groupby(enumerate(documents, 1), key=lambda pair: pair[1]["article"])
    ]


def _whole(problem: dict[str, Any], row: int) -> dict[str, Any]:
    """Return the fields of a question."""
    for name in FIELDS:
        if problem[name] is None or (name == "options" and None in problem[name]):
            raise ValueError(f"row {row}: a null in {name!r}")
    return {name: problem[name] for name in FIELDS}


def _dataset(rows: list[dict[str, Any]]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_list(rows)
