"""A benchmark as a task: the harness makes the prompts and scores the answers, a document is an item."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mm_lightning.errors import UserError
from mm_lightning.evaluation.measurement import Measurement, Row
from mm_lightning.evaluation.metrics import Metric, find_metric
from mm_lightning.evaluation.persistent.data import digest
from mm_lightning.evaluation.persistent.definitions import DEFINITIONS, Definition
from mm_lightning.evaluation.task import Item, Record, Task
from mm_lightning.ranges import Count, Natural, Place, Seed, check_fields

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

    from mm_lightning.evaluation.model import Model
    from mm_lightning.evaluation.persistent.harness_requests import Question

FEWSHOT_SEED = 1234
"""The harness' own, of the examples before each question."""

CUT = "prompts cut"
"""The share of documents of whose prompt the beginning was cut off."""


@dataclass
class Benchmark(Task):
    """One of `DEFINITIONS`.

    Args:
        fewshot: examples before each question; by default the benchmark's own number.
        limit: documents of each benchmark at most, the first ones; by default all.
        max_length: tokens that are read at most, of longer prompts the last ones; by default the training context, 0
            for no limit.
        data_dir: folder of local data, which lie in it as in their repositories, ai2_arc/ARC-Easy/test.jsonl or
            .parquet; by default data sets come from the Hub.
    """

    definition: ClassVar[Definition]

    fewshot: Natural | None = None
    limit: Count | None = None
    seed: Seed = FEWSHOT_SEED
    max_length: Natural | None = None
    data_dir: Place | None = None
    data_hash: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, f"{self.name}: ")
        self._tasks: dict[str, ConfigurableTask] = {}

    def __reduce__(self) -> Any:
        return _made, (self.name, dataclasses.asdict(self))

    @property
    def shots(self) -> int:
        """Examples before each question."""
        return self.definition.shots if self.fewshot is None else self.fewshot

    @property
    def folder(self) -> Path | None:
        """The folder of local data; None for the Hub."""
        return None if self.data_dir is None else Path(self.data_dir).expanduser()

    def settings(self) -> dict[str, Any]:
        """Return the settings: local data count by their content, and another harness may ask otherwise."""
        _require_harness()
        from mm_lightning.evaluation.persistent.harness import local_files

        version = f"{self.version}, lm_eval {importlib.metadata.version('lm_eval')}"
        settings = {**super().settings(), "version": version, "fewshot": self.shots}
        if self.folder is not None:
            files = local_files(self.definition, self.folder, self.shots).values()
            settings["data_dir"] = self.folder.name
            settings["data_hash"] = digest(path for splits in files for paths in splits.values() for path in paths)
            if self.data_hash not in (None, settings["data_hash"]):
                raise UserError(f"{self.name}: its data have the hash {settings['data_hash']}, not {self.data_hash}")
        return settings

    def tasks(self) -> dict[str, ConfigurableTask]:
        """Return the harness' tasks, with their documents."""
        from mm_lightning.evaluation.persistent.harness import load

        if not self._tasks:
            self._tasks = load(self.definition, self.name, self.folder, self.shots)
        return self._tasks

    def items(self, model: Model) -> list[Item]:
        """Return the documents, with their prompts as the harness makes them in one process.

        Raises:
            UserError: the data are missing, or a document cannot be asked; it names the row.
        """
        from mm_lightning.evaluation.persistent.data import places_of
        from mm_lightning.evaluation.persistent.harness import local_files, quiet
        from mm_lightning.evaluation.persistent.harness_requests import questions

        tasks = self.tasks()
        places: dict[str, list[str]] = {}
        if self.folder is not None:
            for name, splits in local_files(self.definition, self.folder, self.shots).items():
                places[name] = places_of(next(iter(splits.values())))  # the split that is asked comes first
        with quiet():
            return [
                Item(f"{name}/{question.number}", {"task": name} if len(tasks) > 1 else {}, question)
                for name, task in tasks.items()
                for question in questions(name, task, self.limit, self.seed, places.get(name, ()))
            ]

    def ask(self, model: Model, items: list[Item]) -> Iterator[Record]:
        """Ask the longest first, those of a task together."""
        from mm_lightning.evaluation.persistent.harness_requests import answer, length
        from mm_lightning.evaluation.persistent.language_model import LanguageModel

        network = LanguageModel(model, self.max_length)
        for name, task in self.tasks().items():
            mine = sorted((item for item in items if item.content.task == name), key=lambda item: -length(item.content))
            size = model.batch_size * (1 if task.OUTPUT_TYPE == "generate_until" else 16)
            for at in range(0, len(mine), size):
                block = mine[at : at + size]
                asked: list[Question] = [item.content for item in block]
                for item, record in zip(block, answer(network, task, asked), strict=True):
                    yield item.record(**record)

    @classmethod
    def metric(cls, name: str) -> Metric:
        """The harness' metrics have the unit that the benchmark says, but for the share of prompts that were cut."""
        return find_metric(name) if name == CUT else Metric(name, cls.definition.unit)

    def measurements(self, records: Sequence[Record]) -> list[Measurement]:
        """Return each metric that is a mean over all documents, then of each of its tasks if it has several."""
        return [
            Measurement(group, self.metric(name), {r["key"]: r["scores"][name] for r in same if name in r["scores"]})
            for group, same in _parts(records)
            for name in dict.fromkeys(name for record in same for name in record["scores"])
        ]

    def rows(self, records: list[Record]) -> list[Row]:
        """Return also other metrics of the harness, and the share of documents whose prompt was cut."""
        rows = super().rows(records)
        for group, same in _parts(records):
            for name in dict.fromkeys(name for record in same for name in record["parts"]):
                values = [record["parts"][name] for record in same if name in record["parts"]]
                rows.append(self._aggregated(group, name, values))
        if any(record["tokens_cut"] for record in records):
            cut = {record["key"]: float(bool(record["tokens_cut"])) for record in records}
            rows.append(Measurement({}, self.metric(CUT), cut).row())
        return rows

    def _aggregated(self, group: dict[str, Any], name: str, values: list[Any]) -> Row:
        from mm_lightning.evaluation.persistent.harness_requests import aggregation

        value = float(aggregation(next(iter(self.tasks().values())), name)(values))
        return Row(group, name, value, None, len(values), self.metric(name).unit)

    def headline(self, rows: list[Row]) -> list[Row]:
        """Return the numbers over all documents; those of each task are in numbers.csv of the report."""
        return [row for row in rows if not row.group]


@dataclass
class CodeBenchmark(Benchmark):
    """A benchmark that runs programs that the network wrote.

    Args:
        run_code: allow to run programs that the networks write, without a sandbox.
    """

    run_code: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.run_code:
            raise UserError(
                f"{self.name} runs programs that the network writes, and not in a sandbox: allow it with --run_code"
            )


def _parts(records: Sequence[Record]) -> list[tuple[dict[str, Any], Sequence[Record]]]:
    """Return all records, then those of each task if there are several."""
    by_task: dict[str, list[Record]] = {}
    for record in records:
        by_task.setdefault(json.dumps(record["group"]), []).append(record)
    return [({}, records), *((json.loads(group), same) for group, same in by_task.items() if len(by_task) > 1)]


@functools.cache
def benchmark(name: str) -> type[Benchmark]:
    """Return the class of one of `DEFINITIONS`."""
    kind = CodeBenchmark if DEFINITIONS[name].runs_code else Benchmark
    return type(name, (kind,), {"name": name, "definition": DEFINITIONS[name], "__doc__": f"The task `{name}`."})


def __getattr__(name: str) -> type[Benchmark]:
    if name in DEFINITIONS:
        return benchmark(name)
    raise AttributeError(f"there is no benchmark {name}")


def _made(name: str, fields: dict[str, Any]) -> Benchmark:
    """Return a task for unpickling, in another process."""
    return benchmark(name)(**fields)


def _require_harness() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("benchmarks need the package lm_eval: pip install 'mm-lightning[eval]'")
