"""The tasks of `mm evaluate` while a network trains."""

from __future__ import annotations

import importlib.util
import json
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from mm_lightning.callbacks.throughput import Throughput
from mm_lightning.checkpoint import checkpoint_path
from mm_lightning.checkpoint.environment import describe_environment
from mm_lightning.console import say
from mm_lightning.errors import UserError
from mm_lightning.evaluation.samples import RESULTS, SAMPLES
from mm_lightning.evaluation.settings import left_out, left_out_line, make_tasks
from mm_lightning.evaluation.task import Record, Row, Task
from mm_lightning.outputs import write_bytes, write_json
from mm_lightning.ranges import Count, Name, Natural, checked
from mm_lightning.training.evaluation_mode import evaluation_mode
from mm_lightning.training.loggers import tensorboard_tag

if TYPE_CHECKING:
    from mm_lightning.evaluation.model import Model


class Evaluation(Callback):
    """Asks the network on a schedule what `mm evaluate` asks: persistent and new knowledge, in-context learning, loss
    by position, or any of their tasks.

    - class_path: Evaluation
      init_args: {tasks: [qa_1, banking77], every_n_steps: 5000, settings: {data_dir: data, limit: 50}}

    Each process asks its share of the questions. Random states and the order of the data stay as they are, so that a
    run with this callback learns what it learns without. metrics.jsonl gets

    - `evaluation/TASK/GROUP/METRIC`: every number of the task's table, such as evaluation/qa_1/length=4096/accuracy,
    - `evaluation/seconds` and `evaluation/share`: how long it took, and all evaluations' share of the training time.

    TensorBoard gets them as `watch_evaluation/...`, `watch_evaluation/TASK`, the table, and `watch_evaluation/FIGURE`,
    the task's figures where matplotlib is installed.

    `evaluations/step=N/TASK/` in the run folder gets samples.jsonl, a line for every question, and results.json, which
    `mm report` reads.

    Under ZeRO-3 each process holds a whole copy of the network while it lasts.

    Args:
        tasks: names of tasks or groups of them, a list or separated by commas; `mm evaluate --help` lists them.
        every_n_steps: optimisation steps from one evaluation to the next; 0 for none in between.
        every_n_tokens: the same in tokens, at the first step that reaches a multiple; give one of the two.
        at_end: whether also after the last step.
        settings: options of the tasks by name, as of `mm evaluate`: {contexts: [4k, 8k], limit: 50, data_dir: data}.
        batch_size: questions side by side at most.
    """

    @checked()
    def __init__(
        self,
        tasks: list[Name] | Name,
        every_n_steps: Natural = 0,
        every_n_tokens: Natural = 0,
        at_end: bool = True,
        settings: dict[str, Any] | None = None,
        batch_size: Count = 16,
    ) -> None:
        if every_n_steps and every_n_tokens:
            raise UserError(
                f"Evaluation: give one of every_n_steps and every_n_tokens, got {every_n_steps} and {every_n_tokens}"
            )
        if not (every_n_steps or every_n_tokens or at_end):
            raise UserError("Evaluation: never evaluates: set every_n_steps, every_n_tokens or at_end")
        try:
            self.tasks = make_tasks(tasks, settings or {})
        except UserError as error:
            raise UserError(f"Evaluation: {error}") from error
        if without := left_out(tasks, settings or {}):
            say(f"Evaluation: {left_out_line(without)}")
        self.every_n_steps, self.every_n_tokens, self.at_end = every_n_steps, every_n_tokens, at_end
        self.batch_size = batch_size
        self._step = -1  # up to which everything is done
        self._begin = self._seconds = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a task that another callback asks too, because both would write the same files."""
        others = [c for c in trainer.callbacks if isinstance(c, Evaluation) and c is not self]
        asked = {task.name for callback in others for task in callback.tasks}
        if several := sorted(asked & {task.name for task in self.tasks}):
            raise UserError(f"Evaluation: {', '.join(several)} is asked by two callbacks: name a task in one of them")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes all questions once, so that what they need is missed before training."""
        self._step = self._evaluated = trainer.global_step
        self._begin, self._seconds = time.monotonic(), 0.0
        model = self._model(trainer, pl_module, pl_module.network)
        try:
            self._items = [task.items(model) for task in self.tasks]
            self._settings = [task.settings_for(model.checkpoint) for task in self.tasks]
        except UserError as error:
            raise UserError(f"Evaluation: {error}") from error

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluates when it is time, after a whole optimisation step."""
        step = trainer.global_step
        if step != self._step and self._due(step, pl_module.trained_tokens, pl_module.step_tokens):
            self._evaluate(trainer, pl_module)
        self._step = step

    def _due(self, step: int, tokens: int, step_tokens: int) -> bool:
        if self.every_n_steps:
            return step % self.every_n_steps == 0
        every = self.every_n_tokens
        return bool(every) and tokens // every > (tokens - step_tokens) // every

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates the last step."""
        if self.at_end and trainer.global_step != self._evaluated:
            self._evaluate(trainer, pl_module)

    def _model(self, trainer: Trainer, pl_module: LightningModule, network: Any) -> Any:
        from mm_lightning.evaluation.model import Model

        data, bf16 = trainer.datamodule, trainer.precision.startswith("bf16")
        # where `mm evaluate` would find it: tasks find the run's own data beside it
        checkpoint = checkpoint_path(pl_module.run_folder.path, trainer.global_step)
        return Model(network, data.tokenizer, data.context_length, bf16, self.batch_size, checkpoint=checkpoint)

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        begin, step = time.monotonic(), trainer.global_step
        values: dict[str, float] = {}
        with evaluation_mode(trainer, pl_module) as network:
            model = self._model(trainer, pl_module, network)
            for task, items, settings in zip(self.tasks, self._items, self._settings, strict=True):
                started = time.monotonic()
                share = items[trainer.global_rank :: trainer.world_size]
                known = {record["key"]: record for record in gather(list(task.ask(model, share)))}
                records = [known[item.key] for item in items]
                rows = task.rows(records)
                values |= {tag(task.name, row): row.value for row in rows}
                if trainer.is_global_zero:
                    folder = pl_module.run_folder.path / "evaluations" / f"step={step}" / task.title
                    about = about_training(model, step, pl_module.trained_tokens, len(items))
                    write = partial(keep, folder, task, settings, records, rows, about, time.monotonic() - started)
                    pl_module.run_folder.write(folder, write)
                    show(trainer, task, settings, rows, about, folder)
        seconds = time.monotonic() - begin
        self._evaluated, self._seconds = step, self._seconds + seconds
        values |= {"evaluation/seconds": seconds, "evaluation/share": self._seconds / (time.monotonic() - self._begin)}
        for logger in trainer.loggers:
            logger.log_metrics(values, step)
        for callback in trainer.callbacks:
            if isinstance(callback, Throughput):
                callback.interrupted = True


def tag(task: str, row: Row) -> str:
    """evaluation/qa_1/length=4096/accuracy"""
    return "/".join(["evaluation", task, *(f"{name}={value}" for name, value in row.group.items()), row.metric])


def gather(records: list[Record]) -> list[Record]:
    """The records of all processes."""
    if not (dist.is_available() and dist.is_initialized()):
        return records
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, records)
    return [record for part in everywhere for record in part]


def about_training(model: Model, step: int, tokens: int, items: int) -> dict[str, Any]:
    """What tables say of a network in training."""
    from mm_lightning.evaluation.run import describe_model

    trained = {"weights": f"in training, step {step}", "step": step, "tokens": tokens}
    return {"checkpoint": str(model.checkpoint), **describe_model(model), **trained, "items": items}


def keep(
    folder: Path,
    task: Task,
    settings: dict[str, Any],
    records: list[Record],
    rows: list[Row],
    about: dict[str, Any],
    seconds: float,
) -> None:
    """Writes what `mm evaluate` would have written."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_bytes(folder / SAMPLES, lines.encode("utf-8", errors="backslashreplace"))
    found = {"task": task.name, "run": folder.parent.name, "rows": [vars(row) for row in rows]}
    more = {"settings": settings, "network": about, "seconds": round(seconds, 1)}
    write_json(folder / RESULTS, {**found, **more, "sessions": [describe_environment()]})


def show(
    trainer: Trainer, task: Task, settings: dict[str, Any], rows: list[Row], about: dict[str, Any], folder: Path
) -> None:
    """Put the tables and the figures of the report into TensorBoard."""
    boards = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    if not boards:
        return
    from mm_lightning.experiments.evaluated.document import section
    from mm_lightning.experiments.evaluated.grid import Grid
    from mm_lightning.experiments.evaluated.groups import Evaluation, Gathered, Network
    from mm_lightning.experiments.evaluated.summary import summary
    from mm_lightning.experiments.page import Drawing, markdown_block

    step = trainer.global_step
    network = Network(f"step={step}", f"step={step}", about)
    evaluation = Evaluation(task.title, settings, network, rows, None, folder, [], kind=task.name)
    gathered = Gathered([evaluation], [])
    parts: list[Any] = [summary(gathered, [evaluation])]
    if importlib.util.find_spec("matplotlib") is not None:
        parts += section(gathered)
    tables = [markdown_block(part.block()) for part in parts if isinstance(part, Grid)]
    for board in boards:
        board.add_text(tensorboard_tag(f"evaluation/{task.title}"), "\n\n".join(tables), step)
        for drawing in (part for part in parts if isinstance(part, Drawing)):
            board.add_figure(tensorboard_tag(f"evaluation/{drawing.name}"), drawing.figure, step)
