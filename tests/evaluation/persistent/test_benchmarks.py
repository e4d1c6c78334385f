"""Each benchmark on made-up documents: who knows every answer has every point, and who knows none has none."""

import pytest

pytest.importorskip("lm_eval", reason="needs the extra `eval`")

from benchmark_documents import write_everything

from mm_lightning.evaluation.persistent import harness
from mm_lightning.evaluation.persistent.definitions import DEFINITIONS, OTHER_6, PERSISTENT_13, VARIANTS
from mm_lightning.evaluation.persistent.harness import configs
from mm_lightning.evaluation.persistent.harness_requests import answer, questions
from mm_lightning.evaluation.registry import GROUPS, TASKS, find_task, task_names


class Oracle:
    """Answers from the documents, rightly or not."""

    def __init__(self, task, right):
        self.task, self.right = task, right

    def tokens_cut(self, request):
        return 0

    def loglikelihood(self, requests, disable_tqdm):
        return [(0.0 if self.chosen(request) == self.right else -50.0 - request.idx, False) for request in requests]

    def chosen(self, request):
        if "unanswerable" in request.args[1]:
            return False
        document = request.doc
        gold = self.task.doc_to_text(document) if self.task.multiple_input else self.task.doc_to_target(document)
        return request.idx == gold

    def generate_until(self, requests, disable_tqdm):
        return [self.text(request.doc) if self.right else "something else" for request in requests]

    def text(self, document):
        for name in ("canonical_solution", "code"):
            if name in document:
                return document[name]
        if "solution" in document:
            last = f"Final Answer: The final answer is ${document['answer']}$. I hope it is correct."
            return f"{document['solution']}\n{last}"
        target = self.task.doc_to_target(document)
        target = target[0] if isinstance(target, list) else target
        if "unanswerable" in target:
            return ""
        return f"So the answer is {target}." if "cot" in self.task.config.task else f" {target.strip()}"


@pytest.mark.interfaces
@pytest.mark.parametrize("name", DEFINITIONS)
def test_perfect_and_ignorant(name, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "configs", lambda definition: dict(list(configs(definition).items())[:2]))
    write_everything(tmp_path, name)
    definition = DEFINITIONS[name]
    allowed = {"run_code": True} if definition.runs_code else {}
    task = find_task(name)(data_dir=str(tmp_path), limit=2, **allowed)
    assert task.settings()["fewshot"] == definition.shots
    for right in (True, False):
        records = []
        for part, harness_task in task.tasks().items():
            asked = list(questions(part, harness_task, 2, 1234))
            oracle = Oracle(harness_task, right)
            found = answer(oracle, harness_task, asked)
            for question, record in zip(asked, found, strict=True):
                records.append({"key": f"{part}/{question.number}", "group": {"task": part}, **record})
        scores = {row.metric: row.value for row in task.rows(records) if not row.group}
        assert definition.score in scores
        full = 100.0 if name == "squadv2" else 1.0
        if right:
            assert set(scores.values()) == {full}
        else:
            assert scores[definition.score] == 0.0


def test_benchmarks_of_several_tasks_are_whole():
    counts = {name: len(configs(definition)) for name, definition in DEFINITIONS.items()}
    several = {"mmlu": 57, "mmlu_continuation": 57, "bbh": 27, "bbh_fewshot": 27, "minerva_math": 7}
    assert counts == {name: several.get(name, 1) for name in DEFINITIONS}


def test_groups_are_those_of_the_paper():
    assert [DEFINITIONS[name].label for name in PERSISTENT_13] == [
        *(
            "obqa",
            "arc easy",
            "winogrande",
            "arc challenge",
            "piqa",
            "boolq",
            "hellaswag",
            "nq",
            "siqa",
            "tqa",
            "gsm8k",
        ),
        *("mmlu alt", "human eval+"),
    ]
    assert [DEFINITIONS[name].label for name in OTHER_6] == [
        *("squad", "bbh", "math", "mbpp", "race middle", "race high")
    ]
    assert not any(DEFINITIONS[name].label for name in VARIANTS)
    assert task_names(["persistent"]) == task_names(["mm_persistent_13"]) == list(PERSISTENT_13)
    assert task_names(["other"]) == task_names(["mm_other_6"]) == list(OTHER_6)
    assert set(GROUPS["persistent"]) - set(GROUPS["persistent_without_code"]) == {"humaneval_plus"}
    assert set(GROUPS["other"]) - set(GROUPS["other_without_code"]) == {"mbpp"}
    assert set(DEFINITIONS) <= set(TASKS)
