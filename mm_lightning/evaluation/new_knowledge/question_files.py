"""SQuAD and HotpotQA as questions with the documents that answer them, from the files they are published as."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_lightning.errors import UserError
from mm_lightning.evaluation.fetch import fetch_hint
from mm_lightning.text_files import read_json


@dataclass(frozen=True)
class Question:
    """A question with the documents that belong to it.

    Attributes:
        id: as in the file.
        text: the question.
        answers: any of them is right.
        gold: documents that answer it; the first of them holds an answer, if any of them does.
        required: documents that its text must hold, `gold` included, in the order of the file.
        near: documents to take as distractors before all others.
    """

    id: str
    text: str
    answers: list[str]
    gold: list[str]
    required: list[str]
    near: list[str]


@dataclass(frozen=True)
class Collection:
    """The questions of a data set, and all its documents, each once."""

    path: Path
    questions: list[Question]
    documents: list[str]


def read_squad(folder: Path) -> Collection:
    """SQuAD 2.0: the answerable questions of its development set; a paragraph is a document.

    Args:
        folder: holds `squad/`, whose .json files are read; paragraphs without an answerable question are distractors.

    Raises:
        UserError: a file is missing or not SQuAD; it names the file and the place.
    """
    questions: list[Question] = []
    documents: list[str] = []
    for path in _files(folder / "squad", "the development set of SQuAD 2.0 (dev-v2.0.json)"):
        content = read_json(path)
        with _place(path):
            articles = list(content["data"])
        for number, article in enumerate(articles, 1):
            with _place(path, f"article {number}"):
                paragraphs = list(article["paragraphs"])
            asked: dict[str, list[tuple[int, Any]]] = {}  # of each text, with the paragraph's number
            for place, paragraph in enumerate(paragraphs, 1):
                with _place(path, f"article {number}, paragraph {place}"):
                    asked.setdefault(_text(paragraph["context"]), []).extend((place, one) for one in paragraph["qas"])
            for text, these in asked.items():
                near = [other for other in asked if other != text]
                for place, one in these:
                    with _place(path, f"article {number}, paragraph {place}"):
                        questions += _squad_question(one, text, near)
            documents += asked
    return _collection(folder / "squad", questions, documents)


def _squad_question(one: Any, document: str, near: list[str]) -> list[Question]:
    """Return the question, if it can be answered."""
    answers = list(dict.fromkeys(_text(answer["text"]) for answer in one["answers"]))
    if not answers or one.get("is_impossible", False):
        return []
    return [Question(str(one["id"]), _text(one["question"]), answers, [document], [document], near)]


def read_hotpot(folder: Path) -> Collection:
    """HotpotQA: the development set of the distractor setting; a paragraph with its title is a document.

    Args:
        folder: holds `hotpotqa/`, whose .json files are read.

    Raises:
        UserError: a file is missing or not HotpotQA; it names the file and the row.
    """
    questions: list[Question] = []
    documents: list[str] = []
    for path in _files(folder / "hotpotqa", "HotpotQA's hotpot_dev_distractor_v1.json"):
        content = read_json(path)
        if not isinstance(content, list):
            raise UserError(f"{path} is not in the published form: it is no list of questions")
        for number, row in enumerate(content, 1):
            with _place(path, f"row {number}"):
                question = _hotpot_question(row)
            questions.append(question)
            documents += question.required
    return _collection(folder / "hotpotqa", questions, documents)


def _hotpot_question(row: Any) -> Question:
    titles = {_text(fact[0]) for fact in row["supporting_facts"]}
    answer = _text(row["answer"])
    paragraphs = {}
    for title, sentences in row["context"]:
        # The published data divide a paragraph into sentences that begin with the space between them; some are empty.
        text = sentences if isinstance(sentences, str) else "".join(sentences)
        paragraphs[f"{_text(title)}\n{text}"] = title in titles
    gold = [text for text, supports in paragraphs.items() if supports]
    if not gold:
        raise ValueError("none of its paragraphs is among its supporting facts")
    gold.sort(key=lambda text: answer.lower() not in text.lower())
    return Question(str(row["_id"]), _text(row["question"]), [answer], gold, list(paragraphs), [])


def _files(folder: Path, what: str) -> list[Path]:
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(
            f"there is no .json file in {folder}: {fetch_hint(folder / '*.json')}put {what} there, or name another "
            "folder (--data_dir)"
        )
    return files


@contextmanager
def _place(path: Path, where: str = "") -> Iterator[None]:
    """Says where in a file something is not as it should be."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}{', ' if where else ''}{where} is not in the published form: {what}") from error


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{json.dumps(value)[:60]} stands where there should be text")
    return value


def _collection(path: Path, questions: list[Question], documents: list[str]) -> Collection:
    ids = [question.id for question in questions]
    if not questions:
        raise UserError(f"{path} has no question with an answer")
    if len(set(ids)) < len(ids):
        twice = next(key for n, key in enumerate(ids) if key in ids[:n])
        raise UserError(f"{path} has two questions with the id {twice}")
    return Collection(path, questions, list(dict.fromkeys(documents)))
