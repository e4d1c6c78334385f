"""The benchmarks: their files in the harness, their scores, and the number of examples before each question."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mm_lightning.evaluation.metrics import Unit


class Function(str):
    """A function by its full name, which the harness imports."""


@dataclass(frozen=True)
class Definition:
    """A benchmark.

    Attributes:
        label: its name in the paper; empty where it is not in the paper's table.
        files: its files in the harness' folder of tasks, as patterns; several tasks are joined by their documents.
        score: its number in a table of benchmarks, as the harness names it: metric and filter.
        shots: examples before each question, unless the user says otherwise.
        changes: settings that differ from the harness' file.
        task_class: a class of this package, as module:Class, where the harness' is written as a class that takes its
            data from one place.
        runs_code: True if scoring runs programs that the network wrote.
        unit: of its metrics.
    """

    label: str
    files: tuple[str, ...]
    score: str
    shots: int = 0
    changes: dict[str, Any] = field(default_factory=dict)
    task_class: str | None = None
    runs_code: bool = False
    unit: Unit = "share"


def _race(name: str, label: str, level: str, process: str = "articles") -> Definition:
    changes = {
        "task": name,
        "dataset_path": "ehovy/race",
        "dataset_name": level,
        "process_docs": Function(f"mm_lightning.evaluation.persistent.race.{process}"),
    }
    return Definition(label, ("race/race.yaml",), "acc", changes=changes)


_STRIPPED = [{"name": "remove_whitespace", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}]
_SQUAD = "mm_lightning.evaluation.persistent.squad"

DEFINITIONS: dict[str, Definition] = {
    "openbookqa": Definition("obqa", ("openbookqa/openbookqa.yaml",), "acc_norm"),
    "arc_easy": Definition("arc easy", ("arc/arc_easy.yaml",), "acc_norm"),
    "winogrande": Definition("winogrande", ("winogrande/default.yaml",), "acc"),
    "arc_challenge": Definition("arc challenge", ("arc/arc_challenge.yaml",), "acc_norm"),
    "piqa": Definition("piqa", ("piqa/piqa.yaml",), "acc_norm"),
    "boolq": Definition("boolq", ("super_glue/boolq/default.yaml",), "acc"),
    "hellaswag": Definition("hellaswag", ("hellaswag/hellaswag.yaml",), "acc_norm"),
    "nq_open": Definition("nq", ("nq_open/nq_open.yaml",), "exact_match,remove_whitespace", 5),
    "social_iqa": Definition("siqa", ("siqa/siqa.yaml",), "acc"),
    "triviaqa": Definition("tqa", ("triviaqa/default.yaml",), "exact_match,remove_whitespace", 5),
    "gsm8k": Definition("gsm8k", ("gsm8k/gsm8k.yaml",), "exact_match,flexible-extract", 5),
    "mmlu_continuation": Definition("mmlu alt", ("mmlu/continuation/mmlu_*.yaml",), "acc", 5),
    "humaneval_plus": Definition(
        "human eval+", ("humaneval/humaneval_plus.yaml",), "pass@1,create_test", runs_code=True
    ),
    "squad_completion": Definition(
        "squad", ("squad_completion/squad_completion.yaml",), "contains", task_class=f"{_SQUAD}:Completion"
    ),
    "bbh": Definition("bbh", ("bbh/cot_fewshot/[!_]*.yaml",), "exact_match,get-answer", 3),
    "minerva_math": Definition("math", ("minerva_math/minerva_math_*.yaml",), "math_verify", 4),
    "mbpp": Definition("mbpp", ("mbpp/mbpp.yaml",), "pass_at_1", 3, runs_code=True),
    "race_middle": _race("race_middle", "race middle", "middle"),
    "race_high": _race("race_high", "race high", "high"),
    # others that the paper's names could mean
    "mmlu": Definition("", ("mmlu/default/mmlu_*.yaml",), "acc", 5),
    "squadv2": Definition("", ("squadv2/squadv2.yaml",), "f1", task_class=f"{_SQUAD}:Version2", unit="percent"),
    # as the harness scores it, the space before an answer makes every answer wrong
    "bbh_fewshot": Definition(
        "", ("bbh/fewshot/[!_]*.yaml",), "exact_match,remove_whitespace", 3, changes={"filter_list": _STRIPPED}
    ),
    "race_middle_questions": _race("race_middle_questions", "", "middle", "questions"),
    "race_high_questions": _race("race_high_questions", "", "high", "questions"),
}

PERSISTENT_13 = tuple(DEFINITIONS)[:13]
OTHER_6 = tuple(DEFINITIONS)[13:19]
VARIANTS = tuple(DEFINITIONS)[19:]


def _without_code(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if not DEFINITIONS[name].runs_code)


BENCHMARK_GROUPS: dict[str, tuple[str, ...]] = {
    "persistent": PERSISTENT_13,
    "mm_persistent_13": PERSISTENT_13,
    "persistent_without_code": _without_code(PERSISTENT_13),
    "other": OTHER_6,
    "mm_other_6": OTHER_6,
    "other_without_code": _without_code(OTHER_6),
    "variants": VARIANTS,
}
