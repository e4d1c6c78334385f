"""The harness' SQuAD tasks, which are classes: with data from anywhere, and a metric that is not fetched."""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import Any, ClassVar

from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks.squad_completion.task import SQUADCompletion
from lm_eval.tasks.squadv2.task import SQuAD2

from mm_lightning.evaluation.persistent.data import read


class Local(ConfigurableTask):
    """A task that reads local files, where there are any.

    Attributes:
        files: of each split.
        examples: the split of the examples before a question.
    """

    files: ClassVar[dict[str, list[str]] | None] = None
    examples: ClassVar[str | None] = None

    @classmethod
    def about(cls) -> dict[str, Any]:
        """Return the data part of the task's file."""
        return {"dataset_path": cls.DATASET_PATH, "validation_split": "validation", "training_split": cls.examples}

    def download(self, *args: Any, **kwargs: Any) -> None:
        if self.files is None:
            super().download(*args, **kwargs)
        else:
            self.dataset = read(self.files)


class Completion(Local, SQUADCompletion):
    """`squad_completion`: the passage breaks off before the answer; whether the next words contain it."""


class Version2(Local, SQuAD2):
    """`squadv2`: exact match and F1 of the official script, over all questions and over each of the two kinds."""

    examples = "train"

    def has_training_docs(self) -> bool:
        return "train" in self.dataset

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
        references = doc["answers"]["text"]
        exact, f1 = exact_and_f1(results[0], references)
        kind = "HasAns" if references else "NoAns"
        return {"exact": exact, "f1": f1, f"{kind}_exact": exact, f"{kind}_f1": f1}

    def aggregation(self) -> dict[str, Any]:
        from lm_eval.api.metrics import mean

        return dict.fromkeys(("exact", "f1", "HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1"), mean)


def exact_and_f1(answer: str, references: list[str]) -> tuple[float, float]:
    """Return the better of each over the references, in percent; a question without any wants an empty answer."""
    answers = [reference for reference in references if words(reference)] or [""]
    return (
        100.0 * max(words(answer) == words(reference) for reference in answers),
        100.0 * max(overlap(words(answer), words(reference)) for reference in answers),
    )


def words(text: str) -> list[str]:
    """Return a text in lower case, without punctuation and articles."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def overlap(answer: list[str], reference: list[str]) -> float:
    """F1 of the words of an answer."""
    if not answer or not reference:
        return float(answer == reference)
    common = sum((Counter(answer) & Counter(reference)).values())
    return 2 * common / (len(answer) + len(reference))
