"""A user's own classification data set, described by a YAML file of five lines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mm_lightning.errors import UserError
from mm_lightning.evaluation.in_context.datasets import RULE, Dataset, Example
from mm_lightning.evaluation.in_context.files import present, read_table
from mm_lightning.yaml_text import read_yaml

KEYS = ("name", "train", "test", "columns", "prompt")
COLUMNS = ("text", "label")
PROMPT = ("instruction", "text", "label")
SHAPE = "it needs name, train, test, columns: {text, label} and prompt: {instruction, text, label}"


def read_dataset(path: str | os.PathLike) -> Dataset:
    """Reads a data set's description and its files, whose paths count from the folder of the description.

    An example (`columns` may be left out where they are called text and label):

        name: questions
        train: train.csv
        test: test.csv
        columns: {text: question, label: kind}
        prompt: {instruction: "Given a question, please predict its kind.", text: "question:", label: "kind:"}

    Files are .csv or .tsv with a header, or .jsonl. Demonstrations come from `train`, questions from `test`. The
    instruction goes on as the paper's do: "The predict answer must come from the demonstration examples ...".

    Args:
        path: the .yaml file.

    Raises:
        UserError: a key or a file is missing, or a row is bad; the row is named.
    """
    path = Path(path).expanduser()
    values = read_yaml(present(path))
    top = _strings(path, values, KEYS, "")
    columns = _strings(path, top.get("columns") or {c: c for c in COLUMNS}, COLUMNS, "columns.")
    prompt = _strings(path, top["prompt"], PROMPT, "prompt.")
    asks, lead = prompt["text"].strip(), prompt["label"].strip()
    parts = {}
    for part in ("train", "test"):
        rows = read_table(path.parent / top[part], columns["text"], columns["label"])
        parts[part] = [(row, Example(f"{asks} {text}", lead, label)) for row, text, label in rows]
    labels = sorted({example.label for _, example in parts["train"]})
    for row, example in parts["test"]:
        if example.label not in labels:
            raise UserError(
                f"{path.parent / top['test']}, row {row}: no row of {top['train']} has the label {example.label!r}"
            )
    train, test = (tuple(example for _, example in parts[part]) for part in ("train", "test"))
    return Dataset(top["name"], f"{prompt['instruction'].strip()} {RULE}", asks, tuple(labels), train, test)


def _strings(path: Path, values: Any, keys: tuple[str, ...], inside: str) -> dict[str, Any]:
    """The strings (and mappings) of a mapping that has these keys and no others; `columns` may be missing."""
    if not isinstance(values, dict):
        raise UserError(f"{path}: {inside.removesuffix('.') or 'the file'} is not a mapping: {SHAPE}")
    strange = [str(key) for key in values if key not in keys]
    missing = [key for key in keys if key not in values and key != "columns"]
    if strange or missing:
        what = f"{inside}{strange[0]} is unknown" if strange else f"{inside}{missing[0]} is missing"
        raise UserError(f"{path}: {what}: {SHAPE}")
    for key, value in values.items():
        if key not in ("columns", "prompt") and not (isinstance(value, str) and value.strip()):
            raise UserError(f"{path}: {inside}{key} must be a text, got {value!r}")
    return values
