"""Run tasks of `mm evaluate` during training."""

from __future__ import annotations

import importlib.util
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, Trainer

from mm_lightning.callbacks.throughput import Throughput
from mm_lightning.checkpoint import checkpoint_path
from mm_lightning.checkpoint.environment import describe_environment
from mm_lightning.console import say
from mm_lightning.errors import UserError
from mm_lightning.evaluation.measurement import Row
from mm_lightning.evaluation.model import Model
from mm_lightning.evaluation.run import describe_model
from mm_lightning.evaluation.samples import RESULTS, SAMPLES
from mm_lightning.evaluation.task import Record, Task
from mm_lightning.evaluation.task_options import left_out, left_out_line, make_tasks
from mm_lightning.networks import Network
from mm_lightning.outputs import write_bytes, write_json
from mm_lightning.ranges import Count, Name, Natural, checked
from mm_lightning.training.evaluation_mode import evaluation_mode
from mm_lightning.training.lightning_internals import accumulating, callbacks_of, datamodule_of
from mm_lightning.training.loggers import tensorboard_tag, tensorboards
from mm_lightning.training.module import LanguageModule


class Evaluation(Callback):
    """Evaluate tasks of `mm evaluate` on a schedule: persistent and new knowledge, in-context learning, loss by
    position, any of their tasks, or tasks of your own.

    - class_path: Evaluation
      init_args: {tasks: [qa_1, banking77], every_n_steps: 5000, settings: {data_dir: data, limit: 50}}

    The items of a task are divided among processes. Random states and the order of the data are unchanged, so that
    training is the same with and without this callback. metrics.jsonl gets

    - `evaluation/TASK/GROUP/METRIC`: every value of the task's table, such as evaluation/qa_1/length=4096/accuracy,
    - `evaluation/seconds` and `evaluation/share`: the duration, and the share of all evaluations in the training time.

    TensorBoard gets them as `watch_evaluation/...`, `watch_evaluation/TASK`, the table, and `watch_evaluation/FIGURE`,
    the task's figures where matplotlib is installed.

    `evaluations/step=N/TASK/` in the run folder gets samples.jsonl, a line for every item, and results.json, which
    `mm report` reads.

    Under ZeRO-3 each process holds a whole copy of the network during an evaluation.

    Args:
        tasks: names of tasks or groups of them, or classes in modules of your own as module.Class, a list or separated
            by commas; `mm evaluate --help` lists the built-in ones.
        every_n_steps: optimization steps between evaluations; 0 for none before the end.
        every_n_tokens: the same in tokens, at the first step that reaches a multiple; give one of the two.
        at_end: evaluate after the last step, too.
        settings: options of the tasks by name, as of `mm evaluate`: {contexts: [4k, 8k], limit: 50, data_dir: data}.
        batch_size: items in a batch at most.
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
        if missing := left_out(tasks, settings or {}):
            say(f"Evaluation: {left_out_line(missing)}")
        self.every_n_steps, self.every_n_tokens, self.at_end = every_n_steps, every_n_tokens, at_end
        self.batch_size = batch_size

    def setup(self, trainer: Trainer, pl_module: LanguageModule, stage: str) -> None:
        """Refuse a task that another Evaluation runs too: both would write the same files."""
        others = [callback for callback in callbacks_of(trainer, Evaluation) if callback is not self]
        elsewhere = {task.name for callback in others for task in callback.tasks}
        if shared := sorted(elsewhere & {task.name for task in self.tasks}):
            raise UserError(f"Evaluation: two callbacks run {', '.join(shared)}: name a task in one of them")

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Prepare the items of all tasks, so that missing data are an error before the first step."""
        self._evaluated = trainer.global_step
        self._begin, self._seconds = time.monotonic(), 0.0
        model = self._model(trainer, pl_module, pl_module.network)
        try:
            self._items = [task.items(model) for task in self.tasks]
            self._settings = [task.settings_for(model.checkpoint) for task in self.tasks]
        except UserError as error:
            raise UserError(f"Evaluation: {error}") from error

    def on_train_batch_end(self, trainer: Trainer, pl_module: LanguageModule, *_: Any) -> None:
        """Evaluate if it is due, after a whole optimization step."""
        due = self._due(trainer.global_step, pl_module.trained_tokens, pl_module.step_tokens)
        if due and not accumulating(trainer):
            self._evaluate(trainer, pl_module)

    def _due(self, step: int, tokens: int, step_tokens: int) -> bool:
        if self.every_n_steps:
            return step % self.every_n_steps == 0
        every = self.every_n_tokens
        return bool(every) and tokens // every > (tokens - step_tokens) // every

    def on_train_end(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Evaluate the last step."""
        if self.at_end and trainer.global_step != self._evaluated:
            self._evaluate(trainer, pl_module)

    def _model(self, trainer: Trainer, pl_module: LanguageModule, network: Network) -> Model:
        data, bf16 = datamodule_of(trainer), trainer.precision.startswith("bf16")
        # as `mm evaluate` would name it: tasks look for the data of the run beside it
        checkpoint = checkpoint_path(pl_module.run_folder.path, trainer.global_step)
        return Model(network, data.tokenizer, data.context_length, bf16, self.batch_size, checkpoint=checkpoint)

    def _evaluate(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        begin, step = time.monotonic(), trainer.global_step
        values: dict[str, float] = {}
        with evaluation_mode(trainer, pl_module) as network:
            model = self._model(trainer, pl_module, network)
            for task, items, settings in zip(self.tasks, self._items, self._settings, strict=True):
                task_begin = time.monotonic()
                share = items[trainer.global_rank :: trainer.world_size]
                by_key = {record["key"]: record for record in gather(list(task.ask(model, share)))}
                records = [by_key[item.key] for item in items]
                rows = task.rows(records)
                values |= {tag(task.name, row): row.value for row in rows}
                if trainer.is_global_zero:
                    folder = pl_module.run_folder.path / "evaluations" / f"step={step}" / task.title
                    about = about_training(model, step, pl_module.trained_tokens, len(items))
                    results: dict[str, Any] = {"task": task.name, "run": f"step={step}", "rows": list(map(vars, rows))}
                    results |= {"settings": settings, "network": about}
                    results["seconds"] = round(time.monotonic() - task_begin, 1)
                    pl_module.run_folder.write(folder, partial(write_results, folder, records, results))
                    log_tables(trainer, task, settings, rows, about, folder)
        seconds = time.monotonic() - begin
        self._evaluated, self._seconds = step, self._seconds + seconds
        values |= {"evaluation/seconds": seconds, "evaluation/share": self._seconds / (time.monotonic() - self._begin)}
        for logger in trainer.loggers:
            logger.log_metrics(values, step)
        for callback in callbacks_of(trainer, Throughput):
            callback.skip_time()


def tag(task: str, row: Row) -> str:
    """Return the tag of a value, as evaluation/qa_1/length=4096/accuracy."""
    return "/".join(["evaluation", task, *(f"{name}={value}" for name, value in row.group.items()), row.metric])


def gather(records: list[Record]) -> list[Record]:
    """Return the records of all processes."""
    if not (dist.is_available() and dist.is_initialized()):
        return records
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, records)
    return [record for part in everywhere for record in part]


def about_training(model: Model, step: int, tokens: int, items: int) -> dict[str, Any]:
    """Return the description of a network in training that results.json and tables give."""
    trained = {"weights": f"in training, step {step}", "step": step, "tokens": tokens}
    return {"checkpoint": str(model.checkpoint), **describe_model(model), **trained, "items": items}


def write_results(folder: Path, records: list[Record], results: dict[str, Any]) -> None:
    """Write samples.jsonl and results.json of a task, as `mm evaluate` does."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_bytes(folder / SAMPLES, lines.encode("utf-8", errors="backslashreplace"))
    write_json(folder / RESULTS, {**results, "sessions": [describe_environment()]})


def log_tables(
    trainer: Trainer, task: Task, settings: dict[str, Any], rows: list[Row], about: dict[str, Any], folder: Path
) -> None:
    """Log the tables and the figures of the report to TensorBoard."""
    if not (boards := tensorboards(trainer)):
        return
    from mm_lightning.experiments.evaluated.estimate_table import EstimateTable
    from mm_lightning.experiments.evaluated.evaluation_report import task_sections
    from mm_lightning.experiments.evaluated.evaluations import Evaluation, EvaluationResults, Network
    from mm_lightning.experiments.evaluated.summary import summary
    from mm_lightning.experiments.page import Drawing, markdown_block

    step = trainer.global_step
    network = Network(f"step={step}", f"step={step}", about)
    evaluation = Evaluation(task.title, settings, network, rows, None, folder, [], kind=task.name)
    results = EvaluationResults([evaluation], [])
    parts: list[Any] = [summary(results, [evaluation])]
    if importlib.util.find_spec("matplotlib") is not None:
        parts += task_sections(results)
    tables = [markdown_block(part.block()) for part in parts if isinstance(part, EstimateTable)]
    for board in boards:
        board.add_text(tensorboard_tag(f"evaluation/{task.title}"), "\n\n".join(tables), step)
        for drawing in (part for part in parts if isinstance(part, Drawing)):
            board.add_figure(tensorboard_tag(f"evaluation/{drawing.name}"), drawing.figure, step)
