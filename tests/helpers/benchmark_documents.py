"""Made-up documents of the benchmarks of persistent knowledge."""

import json


def choices(n):
    return {"text": ["one", f"a {n * n}", "three of them", "é"], "label": list("ABCD")}


def questions(count):
    """Documents of ARC."""
    return [
        {"id": str(n), "question": f"Which is {n}?", "choices": choices(n), "answerKey": "ABCD"[n % 4]}
        for n in range(count)
    ]


def people(count, start=0):
    """Documents of NQ."""
    return [{"question": f"who was the {n}th", "answer": [f"Anna {n}", "A"]} for n in range(start, start + count)]


def write(folder, split, rows):
    """Writes DATA/.../SPLIT.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


RACE = {"article": "Ann has a dog.", "options": ["a dog", "a cat", "a cow", "a hen"], "answer": "A"}
CHOICES = {"text": ["this", "that", "it", "no"], "label": list("ABCD")}

# what the harness' tasks take, made up: (folder, split, documents)
EVERYTHING = {
    "openbookqa": [("openbookqa/main", "test", [{"question_stem": "One is", "choices": CHOICES, "answerKey": "B"}])],
    "arc_easy": [("ai2_arc/ARC-Easy", "test", questions(2))],
    "arc_challenge": [("ai2_arc/ARC-Challenge", "test", questions(2))],
    "winogrande": [
        (
            "winogrande/winogrande_xl",
            "validation",
            [{"sentence": "Ann met Bo as _ was out.", "option1": "Ann", "option2": "Bo", "answer": "2"}],
        )
    ],
    "piqa": [("piqa", "validation", [{"goal": "Eat", "sol1": "bread", "sol2": "sand", "label": 0}])],
    "boolq": [("super_glue/boolq", "validation", [{"passage": "It is.", "question": "is it", "label": 1}])],
    "hellaswag": [
        (
            "hellaswag",
            "validation",
            [
                {
                    "ctx_a": "A man sits.",
                    "ctx_b": "he",
                    "activity_label": "Sitting",
                    "endings": ["sits", "runs", "flies", "melts"],
                    "label": "0",
                }
            ],
        )
    ],
    "nq_open": [("nq_open", "validation", people(2)), ("nq_open", "train", people(6, 100))],
    "social_iqa": [
        (
            "siqa",
            "validation",
            [
                {
                    "context": "Bo ran.",
                    "question": "Why?",
                    "answerA": "x",
                    "answerB": "fun",
                    "answerC": "z",
                    "label": "2",
                }
            ],
        )
    ],
    "triviaqa": [
        (
            "trivia_qa/rc.nocontext",
            split,
            [{"question": f"who {n}", "answer": {"aliases": ["Al", "B"]}} for n in range(6)],
        )
        for split in ("validation", "train")
    ],
    "gsm8k": [
        ("gsm8k/main", split, [{"question": f"{n} + 1?", "answer": f"Add.\n#### {n + 1}"} for n in range(6)])
        for split in ("test", "train")
    ],
    "humaneval_plus": [
        (
            "humanevalplus",
            "test",
            [
                {
                    "task_id": "HumanEval/0",
                    "prompt": "def add(a, b):\n",
                    "canonical_solution": "    return a + b\n",
                    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
                    "entry_point": "add",
                }
            ],
        )
    ],
    "squad_completion": [("based-squad", "validation", [{"text": "Ann has a dog. Ann has a ", "value": "dog "}])],
    "mbpp": [
        (
            "mbpp/full",
            "test",
            [
                {
                    "task_id": 11,
                    "text": "Add.",
                    "code": "def add(a, b):\n    return a + b",
                    "test_list": ["assert add(1, 2) == 3"] * 3,
                }
            ],
        )
    ],
    "race_middle": [
        ("race/middle", "test", [{**RACE, "question": "What has she?"}, {**RACE, "question": "She has _ ."}])
    ],
    "race_high": [
        (
            "race/high",
            "test",
            [{"article": "A", "problems": str([{"question": "Q?", "options": list("wxyz"), "answer": "D"}])}],
        )
    ],
    "squadv2": [
        (
            "squad_v2",
            "validation",
            [
                {
                    "id": "1",
                    "title": "T",
                    "context": "A dog.",
                    "question": "Who?",
                    "answers": {"text": ["A dog", "dog"]},
                },
                {"id": "2", "title": "T", "context": "A dog.", "question": "Why?", "answers": {"text": []}},
            ],
        )
    ],
}


def write_everything(folder, name):
    """The documents of a benchmark; of one that has several tasks the same documents for each."""
    from mm_lightning.evaluation.persistent import harness
    from mm_lightning.evaluation.persistent.definitions import DEFINITIONS

    several = {
        "mmlu": ("mmlu", {"test": 2, "dev": 5}, {"question": "One?", "choices": list("pqrs"), "answer": 3}),
        "mmlu_continuation": (
            "mmlu",
            {"test": 2, "dev": 5},
            {"question": "One?", "choices": list("pqrs"), "answer": 3},
        ),
        "bbh": ("bbh", {"test": 1}, {"input": "True and True is", "target": "True"}),
        "bbh_fewshot": ("bbh", {"test": 1}, {"input": "True and True is", "target": "True"}),
        "minerva_math": ("hendrycks_math", {"test": 1}, {"problem": "1 + 1?", "solution": "It is $\\boxed{2}$."}),
    }
    name = name.removesuffix("_questions")
    for place, split, rows in EVERYTHING.get(name, ()):
        write(folder / place, split, rows)
    if name in several:
        repository, splits, row = several[name]
        for config in harness.configs(DEFINITIONS[name]).values():
            for split, count in splits.items():
                write(folder / repository / config["dataset_name"], split, [row] * count)
