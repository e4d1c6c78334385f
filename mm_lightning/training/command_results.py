"""Reports of `mm validate`, `mm test` and `mm predict`, and the files that they write."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mm_lightning.checkpoint import fingerprint
from mm_lightning.console import say
from mm_lightning.data import TextDataModule
from mm_lightning.outputs import Output, opened
from mm_lightning.side_files import append_lines, known_config
from mm_lightning.training.check_config import config_differences

LOSS_SETTINGS = (
    "model.network",
    "data.path",
    "data.context_length",
    "data.validation_sequences",
    "trainer.precision",
    "trainer.limit_val_batches",
    "trainer.limit_test_batches",
)
"""Settings that decide a validation loss."""


def report_evaluation(
    metrics: dict[str, float], checkpoint: Path, run: Path, data: TextDataModule, config: dict[str, Any]
) -> None:
    """Print the metrics of a checkpoint, and add them to evaluation.jsonl of its run.

    Args:
        metrics: validation/... or test/...
        checkpoint: the checkpoint.
        run: its run folder.
        data: the data of the command.
        config: the settings of the command, with every default.
    """
    say(f"{checkpoint}: " + "  ".join(f"{name.partition('/')[2]} {value:.4f}" for name, value in metrics.items()))
    if not (run / "config.yaml").is_file():
        return
    before = known_config(run / "config.yaml")
    differences = config_differences(before, config) if before else {}
    changes = {name: value for name, (_, value) in differences.items() if name.startswith(LOSS_SETTINGS)}
    line = {
        "checkpoint": checkpoint.name,
        "weights": fingerprint(checkpoint),
        "data": " + ".join(s.manifest.content[:12] for s in data.sets),
        **({"changed": changes} if changes else {}),
        **metrics,
    }
    try:
        append_lines(run / "evaluation.jsonl", json.dumps(line) + "\n")
    except OSError as error:
        say(f"cannot write {run / 'evaluation.jsonl'}: {error.strerror}")


def write_predictions(output: Output, batches: Iterable[list[dict[str, Any]]]) -> None:
    """Write one JSON line a document, and print how many there are and their mean loss.

    Args:
        output: the file.
        batches: the documents of each batch, as :meth:`LanguageModule.predict_step` returns them.
    """
    documents = [document for batch in batches for document in batch]
    with opened(output) as file:
        file.writelines(json.dumps(document) + "\n" for document in documents)
    predicted = sum(document["predicted"] for document in documents)
    mean = sum(document["loss"] * document["predicted"] for document in documents) / max(predicted, 1)
    say(f"{output}: {len(documents):,} documents, {predicted:,} predicted tokens, mean loss {mean:.4f}")
