"""Ask networks the items of tasks that are not answered yet, by one process or several.

Processes need no connection: each asks its share of the items, writes its own file, and the first reads them all.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_lightning.checkpoint import fingerprint
from mm_lightning.console import Progress, say
from mm_lightning.evaluation.origin import origin
from mm_lightning.evaluation.samples import RESULTS, Samples
from mm_lightning.evaluation.task import Item, Task
from mm_lightning.outputs import write_json

if TYPE_CHECKING:
    from mm_lightning.evaluation.model import Model


@dataclass(frozen=True)
class EvaluatedModel:
    """A network to evaluate.

    Attributes:
        checkpoint: the file, or DeepSpeed folder.
        name: of its results.
        options: further arguments of :meth:`Model.load`, except those that say where and how fast.
    """

    checkpoint: Path
    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """Return all that decides its answers."""
        return {"weights": fingerprint(self.checkpoint), **self.options}


@dataclass(frozen=True)
class Job:
    """The networks and tasks of one evaluation.

    Attributes:
        subjects: of whom.
        tasks: what.
        output: the folder for results.
        batch_size: rows side by side at most.
        device: cpu, cuda, cuda:1, ... or auto.
        rank: which of `world_size` processes this is.
        world_size: processes.
    """

    subjects: Sequence[EvaluatedModel]
    tasks: Sequence[Task]
    output: Path
    batch_size: int = 16
    device: str = "auto"
    rank: int = 0
    world_size: int = 1

    def samples(self, subject: EvaluatedModel, task: Task) -> Samples:
        """Return the records of a task about a network; earlier versions had one folder for all a user's data."""
        folder, before = (self.output / subject.name / name for name in (task.title, task.name))
        if not folder.exists() and Samples(before).holds(self.identity(subject, task)):
            return Samples(before)
        return Samples(folder)

    def identity(self, subject: EvaluatedModel, task: Task) -> dict[str, Any]:
        """Return all that the records of a task about a network depend on."""
        settings = task.settings_for(subject.checkpoint)
        return {"task": task.name, "settings": settings, "network": subject.identity()}


def run(job: Job) -> None:
    """Ask everything that is not answered yet, in this process, and write the results.

    All data of all networks are looked for before the first question is asked.

    Raises:
        UserError: for any mistake of the user's.
    """
    items: dict[tuple[str, str], list[Item]] = {}
    for subject in job.subjects:
        if left := [task for task in job.tasks if not finished(job, subject, task)]:
            described = load(job, subject, weights=False)
            items |= {(subject.name, task.title): task.items(described) for task in left}
    for subject in job.subjects:
        model: Model | None = None  # the one before is freed: two may not fit side by side
        for task in job.tasks:
            if (key := (subject.name, task.title)) not in items:
                say_first(job, f"{task.title} of {subject.name}: already there")
                continue
            model = model or load(job, subject)
            answer(job, subject, task, model, items.pop(key))


def load(job: Job, subject: EvaluatedModel, weights: bool = True) -> Model:
    """Return a network, on the device of the job."""
    from mm_lightning.evaluation.model import Model

    return Model.load(subject.checkpoint, job.device, batch_size=job.batch_size, weights=weights, **subject.options)


def say_first(job: Job, message: str) -> None:
    """Print one line, in the first process of the job."""
    if job.rank == 0:
        say(message, stderr=True)


def finished(job: Job, subject: EvaluatedModel, task: Task) -> bool:
    """Return whether these results are there."""
    samples = job.samples(subject, task)
    samples.claim(job.identity(subject, task), None)
    return (samples.folder / RESULTS).is_file()


def answer(job: Job, subject: EvaluatedModel, task: Task, model: Model, items: Sequence[Item]) -> None:
    """Ask one task about one network.

    Args:
        job: all that is asked.
        subject: of whom.
        task: what.
        model: the network.
        items: of the task.
    """
    from mm_lightning.checkpoint.environment import describe_environment

    begin = time.monotonic()
    samples = job.samples(subject, task)
    session = describe_environment() if job.rank == 0 else None
    samples.claim(job.identity(subject, task), session)
    keys = [item.key for item in items]
    if len(set(keys)) < len(keys):
        raise ValueError(f"{task.name} has items of the same key")
    known = samples.read()
    answered = sum(key in known for key in keys)
    say_first(
        job,
        f"{task.title} of {subject.name}: {len(items):,} items"
        + (f", {answered:,} already answered" if answered else ""),
    )
    mine = [item for item in items[job.rank :: job.world_size] if item.key not in known]
    try:
        with AnswerProgress(task.title, samples, len(items), shown=job.rank == 0) as progress:
            model.reading = progress.reading
            ask(task, model, mine, samples, job, progress.count)
            if job.rank == 0:
                wait_for(keys, samples, progress.count)
    except KeyboardInterrupt:
        say_first(job, f"interrupted: {samples.count():,} answers are kept, the same command goes on")
        raise
    finally:
        if job.rank == 0:
            samples.close_session(time.monotonic() - begin)
    if job.rank == 0:
        records = samples.gather(keys, samples.read())
        rows = [vars(row) for row in task.rows(records)]
        about = {**about_network(model, subject), "items": len(items)}
        settings = task.settings_for(subject.checkpoint)
        results = {"task": task.name, "run": subject.name, "rows": rows, "settings": settings, "network": about}
        sessions = samples.sessions()
        seconds = round(sum(session.get("seconds", 0.0) for session in sessions), 1)
        write_json(samples.folder / RESULTS, {**results, "seconds": seconds, "sessions": sessions})


def ask(task: Task, model: Model, items: Sequence[Item], samples: Samples, job: Job, look: Callable[[], None]) -> None:
    """Write the records of some items as they come."""
    if not items:
        return
    missing, parent = {item.key for item in items}, multiprocessing.parent_process()
    with samples.writer(job.rank, job.world_size) as write:
        for record in task.ask(model, list(items)):
            missing.remove(record["key"])
            write(record)
            look()
            if parent is not None and not parent.is_alive():
                raise KeyboardInterrupt
    if missing:
        raise ValueError(f"{task.name} left {len(missing)} items without an answer, the first {min(missing)!r}")


def wait_for(keys: Iterable[str], samples: Samples, look: Callable[[], None]) -> None:
    """Wait until all processes have answered."""
    all_keys = set(keys)
    while not all_keys <= samples.read().keys():
        time.sleep(0.2)
        look()


def about_network(model: Model, subject: EvaluatedModel) -> dict[str, Any]:
    """Return the description of a trained network for tables."""
    trained = origin(subject.checkpoint)
    return {"checkpoint": str(subject.checkpoint), **trained, **describe_model(model), **subject.identity()}


def describe_model(model: Model) -> dict[str, Any]:
    """Return the description of any network for tables; FLOPs per token at a context of 256, as in the paper."""
    from mm_lightning.networks.cost import forward_flops_per_token

    config = model.network.config
    return {
        "forward_flops_per_token": forward_flops_per_token(config, 256),
        "architecture": type(model.network).__name__,
        "levels": list(config.levels),
        "inference_delay": config.inference_delay if "long" in config.levels else None,
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "context_length": model.context_length,
        "tokenizer": model.tokenizer.sha256,
        "precision": "bf16" if model.bf16 else "32",
        "device": model.device.type,
    }


def run_name(
    checkpoint: Path,
    long_term: bool = True,
    inference_delay: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Name a checkpoint's results: quickstart-0-step500 of runs/quickstart/0/checkpoints/step=500.ckpt."""
    parts = [checkpoint.stem]
    if checkpoint.parent.name == "checkpoints":
        run = checkpoint.resolve().parent.parent
        parts = [*([run.parent.name] if run.name.isdigit() else []), run.name, checkpoint.stem]
    parts += [] if long_term else ["no-long-term"]
    parts += [] if inference_delay is None else [f"delay{inference_delay}"]
    parts += [f"{name}{value}" for name, value in (settings or {}).items()]
    return re.sub(r"[^\w.\-]+", "", "-".join(parts))


class AnswerProgress(Progress):
    """A bar for the answers of all processes.

    Args:
        title: of the task.
        samples: which are counted.
        total: how many there will be.
        shown: False for none.
    """

    def __init__(self, title: str, samples: Samples, total: int, shown: bool) -> None:
        super().__init__(title, total, shown=shown)
        self._samples, self._counted_at = samples, float("-inf")
        self.count()

    @contextlib.contextmanager
    def reading(self, tokens: int) -> Iterator[Callable[[int], None]]:
        """Context manager for a bar of a long text that is read, which gives what moves it."""
        with self.part("reading, tokens", tokens) as bar:
            yield bar.advance

    def count(self) -> None:
        """Count the answers and move the bar, twice a second at most."""
        if self.shown and time.monotonic() - self._counted_at > 0.5:
            self._counted_at = time.monotonic()
            self.update(self._samples.count())
