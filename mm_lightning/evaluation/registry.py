"""The built-in tasks and groups of tasks by name."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from mm_lightning.errors import UserError
from mm_lightning.evaluation.persistent.definitions import BENCHMARK_GROUPS, DEFINITIONS
from mm_lightning.evaluation.task import Task
from mm_lightning.options import nearest
from mm_lightning.user_classes import load_class

_IN_CONTEXT = "mm_lightning.evaluation.in_context.in_context_task"

# name: ("module:class", what it measures)
TASKS: dict[str, tuple[str, str]] = {
    "loss_by_position": (
        "mm_lightning.evaluation.loss_by_position:LossByPosition",
        "loss against position in the context, beyond the training context too",
    ),
    "long_ppl": (
        "mm_lightning.evaluation.long_ppl:LongPPL",
        "perplexity of the tokens that a long context makes probable (LongPPL)",
    ),
    "retrieval_profile": (
        "mm_lightning.evaluation.retrieval_profile:RetrievalProfile",
        "with what weight the last token reads each pair before it, by distance (Figure 1)",
    ),
    "qa_1": (
        "mm_lightning.evaluation.new_knowledge.question_answering:Squad",
        "questions about one of many paragraphs of SQuAD (RULER)",
    ),
    "qa_2": (
        "mm_lightning.evaluation.new_knowledge.question_answering:Hotpot",
        "questions about two of many paragraphs of HotpotQA (RULER)",
    ),
    "niah_single_1": ("mm_lightning.evaluation.new_knowledge.needles:Single1", "a number hidden in noise (RULER)"),
    "niah_single_2": ("mm_lightning.evaluation.new_knowledge.needles:Single2", "a number hidden in prose (RULER)"),
    "niah_single_3": ("mm_lightning.evaluation.new_knowledge.needles:Single3", "a uuid hidden in prose (RULER)"),
    "niah_multikey_1": (
        "mm_lightning.evaluation.new_knowledge.needles:MultiKey1",
        "one of four numbers hidden in prose (RULER)",
    ),
    "niah_multikey_2": ("mm_lightning.evaluation.new_knowledge.needles:MultiKey2", "one of very many numbers (RULER)"),
    "niah_multikey_3": ("mm_lightning.evaluation.new_knowledge.needles:MultiKey3", "one of very many uuids (RULER)"),
    "niah_multivalue": (
        "mm_lightning.evaluation.new_knowledge.needles:MultiValue",
        "all four numbers of a key hidden in prose (RULER)",
    ),
    "niah_multiquery": (
        "mm_lightning.evaluation.new_knowledge.needles:MultiQuery",
        "the numbers of four keys hidden in prose (RULER)",
    ),
    "regbench": (
        "mm_lightning.evaluation.regbench:RegBench",
        "languages of random automata learned in context, for networks trained on them",
    ),
    "mqar": (
        "mm_lightning.evaluation.mqar:MQAR",
        "values recalled by their keys, for networks trained on it (Zoology)",
    ),
    "generated_facts": (
        "mm_lightning.evaluation.new_knowledge.generated_facts:GeneratedFacts",
        "questions about made-up facts, for small networks",
    ),
    "banking77": (f"{_IN_CONTEXT}:Banking77", "77 intents from demonstrations"),
    "goemotions": (f"{_IN_CONTEXT}:GoEmotions", "28 emotions from demonstrations"),
    "tacred": (
        f"{_IN_CONTEXT}:Tacred",
        "41 relations from demonstrations, licensed data",
    ),
    "semeval2010_task8": (
        f"{_IN_CONTEXT}:SemEval",
        "18 relations from demonstrations",
    ),
    "redocred": (f"{_IN_CONTEXT}:ReDocRED", "41 relations from demonstrations"),
    "classification": (
        f"{_IN_CONTEXT}:Classification",
        "classes of your own data set",
    ),
}

TASKS |= {
    name: (
        f"mm_lightning.evaluation.persistent.benchmark_task:{name}",
        f"{definition.label or name}, of lm-evaluation-harness",
    )
    for name, definition in DEFINITIONS.items()
}

# several tasks by one name
GROUPS: dict[str, tuple[str, ...]] = {
    "new_knowledge": ("qa_1", "qa_2"),
    "needles": (needles := tuple(name for name in TASKS if name.startswith("niah_"))),
    "ruler": ("qa_1", "qa_2", *needles),
    "in_context": ("banking77", "goemotions", "tacred"),
    "in_context_free": ("banking77", "goemotions", "semeval2010_task8", "redocred"),
    **BENCHMARK_GROUPS,
}


def restore_task(name: str, settings: Mapping[str, Any]) -> Task:
    """Return the task with the settings that its results have."""
    return find_task(name)(**{key: value for key, value in settings.items() if key != "version"})


def task_names(words: Iterable[str]) -> list[str]:
    """The names that some words stand for: tasks and groups, separated by commas too; each once."""
    names = [name for word in words for name in word.split(",") if name]
    return list(dict.fromkeys(one for name in names for one in GROUPS.get(name, (name,))))


def find_task(name: str) -> type[Task]:
    """Return the task of a name: a built-in one, or a class in a user's own module as module.Class.

    Raises:
        UserError: there is none; it names the nearest.
    """
    if name in TASKS:
        module, kind = TASKS[name][0].split(":")
        return getattr(importlib.import_module(module), kind)
    if "." in name:
        task = load_class(name, Task)
        if task.name != name:
            raise UserError(f"{name} is called {task.name!r}, by which mm report cannot find it: leave its name out")
        return task
    word = name.lower()
    about = [task for task, (_, text) in TASKS.items() if word in re.findall(r"\w+", text.lower())]
    near = nearest(name, [*TASKS, *GROUPS], 0.6)
    meant = list(dict.fromkeys([*([near] if near else []), *about]))
    hint = f"did you mean {' or '.join(meant[:4])}?" if meant else f"there are {', '.join([*TASKS, *GROUPS])}"
    raise UserError(f"there is no task {name!r}: {hint}")
