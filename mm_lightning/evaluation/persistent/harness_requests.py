"""The harness' part: prompts from documents, and scores from answers."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask

from mm_lightning.errors import UserError
from mm_lightning.evaluation.persistent.language_model import LanguageModel


@dataclass(frozen=True)
class Question:
    """A document of a task.

    Attributes:
        task: its name.
        number: which document.
        document: as the task has it.
        requests: the requests to the network.
    """

    task: str
    number: int
    document: dict[str, Any]
    requests: list[Instance]


def questions(
    name: str, task: ConfigurableTask, limit: int | None, seed: int, places: Sequence[str] = ()
) -> Iterator[Question]:
    """Yield the first documents of a task and their requests; drawn examples are those of a run of the harness.

    Args:
        name: of the task.
        task: the harness' task.
        limit: documents at most.
        seed: of drawn examples.
        places: file and row of each document, where they are known.

    Raises:
        UserError: a document has not what the task needs; it names file and row.
    """
    task.set_fewshot_seed(seed=seed)
    if len(places) != len(task.eval_docs):  # a task may make other documents of the rows
        places = ()
    for number, document in task.doc_iterator(limit=limit):
        place = places[number] if places else f"document {number + 1}"
        try:
            if null := _null(task, document):
                raise UserError(f"{name}: {place}: {null!r} is null")
            context = task.fewshot_context(
                document, num_fewshot=task.config.num_fewshot, gen_prefix=task.doc_to_prefix(document)
            )
            requests = task.construct_requests(
                doc=document,
                ctx=context,
                metadata=(name, number, 1),
                apply_chat_template=False,
                chat_template=None,
            )
            requests = requests if isinstance(requests, list) else [requests]
            if problem := _problem(task, document, requests):
                raise UserError(f"{name}: {place}: {problem}")
        except UserError:
            raise
        except Exception as error:  # of a template or a function of the task, about this document
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(f"{name}: {place} cannot be asked ({reason})") from error
        yield Question(name, number, document, requests)


def _null(task: ConfigurableTask, document: dict[str, Any]) -> str | None:
    """Return the name of a field that is null and that the task's prompts are made of."""
    templates = [task.config.doc_to_text, task.config.doc_to_target, task.config.doc_to_choice]
    words = {word for template in templates for word in re.findall(r"\w+", str(template))}
    written = all(template is None or isinstance(template, str) for template in templates)
    return next((name for name, x in document.items() if x is None and (name in words or not written)), None)


def _problem(task: ConfigurableTask, document: dict[str, Any], requests: Sequence[Instance]) -> str | None:
    """Return what makes a question one that nobody can answer: an empty answer, or a right one that is none of them."""
    if any(r.request_type == "loglikelihood" and not str(r.args[1]).strip() for r in requests):
        return "an answer to choose is empty"
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    choices = task.doc_to_choice(document)
    right = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    for one in right if isinstance(right, list) else [right]:
        if not (0 <= one < len(choices) if isinstance(one, int) else one in choices):
            return f"the right answer is {one!r}, not one of the {len(choices)} (counted from 0)"
    return None


def length(question: Question) -> int:
    """Return the number of characters of the prompts of a question."""
    return sum(len(request.args[0]) for request in question.requests)


def answer(network: LanguageModel, task: ConfigurableTask, asked: Sequence[Question]) -> list[dict[str, Any]]:
    """Return the records of questions of a task: `scores` of which the mean is the metric, `parts` of other metrics,
    prompts, answers and what they should be."""
    requests = [request for question in asked for request in question.requests]
    by_kind: dict[str, list[Instance]] = {}
    for request in requests:
        by_kind.setdefault(request.request_type, []).append(request)
    for kind, same in by_kind.items():
        for request, response in zip(same, getattr(network, kind)(same, disable_tqdm=True), strict=True):
            request.resps = [response]
            request.filtered_resps = {}
    task._instances = requests
    task.apply_filters()
    cut = [max(map(network.tokens_cut, question.requests)) for question in asked]
    return [{**_record(task, question), "tokens_cut": n} for question, n in zip(asked, cut, strict=True)]


def _record(task: ConfigurableTask, question: Question) -> dict[str, Any]:
    scores, parts, filtered = {}, {}, {}
    for name in question.requests[0].filtered_resps:
        responses = [request.filtered_resps[name] for request in question.requests]
        filtered[name] = responses
        for metric, value in task.process_results(question.document, responses).items():
            label = metric if name == "none" else f"{metric},{name}"
            if aggregation(task, label) in (mean, np.mean):
                scores[label] = float(value)
            else:
                parts[label] = value
    texts = [request.args for request in question.requests]
    record = {
        "scores": scores,
        "parts": parts,
        "document": question.document,
        **_asked(texts),
        "answers": [request.resps[0] for request in question.requests],
        "filtered": {name: responses for name, responses in filtered.items() if name != "none"},
        "reference": task.doc_to_target(question.document),
    }
    return json.loads(json.dumps(record, default=_plain))


def _asked(texts: Sequence[tuple]) -> dict[str, Any]:
    """Return prompts, and continuations or settings, equal ones once."""
    prompts, others = [args[0] for args in texts], [args[1] if len(args) > 1 else None for args in texts]
    same = all(prompt == prompts[0] for prompt in prompts)
    return {"prompt": prompts[0]} | ({"asked": others} if same else {"prompts": prompts, "asked": others})


def aggregation(task: ConfigurableTask, label: str) -> Callable[[Sequence[Any]], float]:
    """Return the function by which a task makes a metric of the documents' values."""
    return task.aggregation().get(label.split(",")[0], mean)


@functools.singledispatch
def _plain(value: Any) -> Any:
    return str(value)


@_plain.register(np.generic)
def _(value: np.generic) -> Any:
    return value.item()
