"""SQuAD and HotpotQA as questions with the documents that answer them, from the files they are published as."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_lightning.errors import UserError


@dataclass(frozen=True)
class Question:
    """A question with the documents that belong to it.

    Attributes:
        id: as in the file.
        text: the question.
        answers: any of them is right.
        gold: documents that answer it; the first of them holds an answer, if any of them does.
        required: further documents that its text must hold.
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
    questions, documents = [], []
    for path in _files(folder / "squad", "the development set of SQuAD 2.0 (dev-v2.0.json)"):
        content = _load(path)
        articles = _checked(path, "", lambda content=content: list(content["data"]))
        for number, article in enumerate(articles, 1):
            where = f"article {number}"
            paragraphs = _checked(
                path, where, lambda a=article: [(_text(p["context"]), p["qas"]) for p in a["paragraphs"]]
            )
            texts = list(dict.fromkeys(text for text, _ in paragraphs))
            documents += texts
            for place, (text, asked) in enumerate(paragraphs, 1):
                near = [other for other in texts if other != text]
                make = lambda asked=asked, text=text, near=near: list(_squad_questions(asked, text, near))  # noqa: E731
                questions += _checked(path, f"{where}, paragraph {place}", make)
    return _collection(folder / "squad", questions, documents)


def _squad_questions(asked: Any, document: str, near: list[str]) -> Iterator[Question]:
    for one in asked:
        answers = list(dict.fromkeys(_text(answer["text"]) for answer in one["answers"]))
        if answers and not one.get("is_impossible", False):
            yield Question(str(one["id"]), _text(one["question"]), answers, [document], [], near)


def read_hotpot(folder: Path) -> Collection:
    """HotpotQA: the development set of the distractor setting; a paragraph with its title is a document.

    Args:
        folder: holds `hotpotqa/`, whose .json files are read.

    Raises:
        UserError: a file is missing or not HotpotQA; it names the file and the row.
    """
    questions, documents = [], []
    for path in _files(folder / "hotpotqa", "HotpotQA's hotpot_dev_distractor_v1.json"):
        content = _load(path)
        for number, row in enumerate(_checked(path, "", lambda content=content: list(content)), 1):
            question = _checked(path, f"row {number}", lambda row=row: _hotpot_question(row))
            questions.append(question)
            documents += [*question.gold, *question.required]
    return _collection(folder / "hotpotqa", questions, documents)


def _hotpot_question(row: Any) -> Question:
    titles = {_text(fact[0]) for fact in row["supporting_facts"]}
    answer = _text(row["answer"])
    paragraphs = {}
    for title, sentences in row["context"]:
        # The published data divide a paragraph into sentences that begin with the space between them.
        text = sentences if isinstance(sentences, str) else "".join(map(_text, sentences))
        paragraphs[f"{_text(title)}\n{text}"] = title in titles
    gold = [text for text, supports in paragraphs.items() if supports]
    if not gold:
        raise ValueError("none of its paragraphs is among its supporting facts")
    gold.sort(key=lambda text: answer.lower() not in text.lower())
    required = [text for text, supports in paragraphs.items() if not supports]
    return Question(str(row["_id"]), _text(row["question"]), [answer], gold, required, [])


def _files(folder: Path, what: str) -> list[Path]:
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(f"there is no .json file in {folder}: put {what} there, or name another folder (--data_dir)")
    return files


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8 or not JSON
        raise UserError(f"{path} is not JSON: {error}") from error


def _checked(path: Path, where: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
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
