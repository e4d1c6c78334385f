"""Data that goes wrong while it is read."""

import os
import pickle
import signal
import warnings

import fsspec
import lightning
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mm_lightning import retry
from mm_lightning.data import TextDataModule, sequences
from mm_lightning.data.prepare import prepare
from mm_lightning.data.prepare_config import PrepareConfig
from mm_lightning.data.sequences import PlainLoader
from mm_lightning.data.workers import WorkerDied
from mm_lightning.decompress import opened
from mm_lightning.errors import UserError
from mm_lightning.signals import how_it_ended


def loader(folder, **settings):
    options = {"context_length": 32, "global_batch_size": 8, "micro_batch_size": 4, "num_workers": 0, **settings}
    module = TextDataModule(str(folder), **options)
    module.setup("fit")
    return module.train_dataloader()


@pytest.fixture
def shards(tmp_path):
    """A folder of several shards of training text."""
    for n in range(6):
        (tmp_path / f"{n}.txt").write_text(" ".join(str(k * (n + 3)) for k in range(200)))
    sources = [str(tmp_path / f"{n}.txt") for n in range(6)]
    config = PrepareConfig(sources, validation_fraction=0, workers=1, shard_tokens=1000)
    prepare(config, tmp_path / "data", progress=False)
    assert len(list((tmp_path / "data" / "train").glob("*.bin"))) > 3
    return tmp_path / "data"


def spoil(path, how):
    data = path.read_bytes()
    if how == "is missing":
        path.unlink()
    elif how == "is truncated":
        path.write_bytes(data[:-100])
    elif how == "is damaged":
        path.write_bytes(data[:50] + bytes([data[50] ^ 4]) + data[51:])
    elif how == "swapped":
        other = next(p for p in path.parent.glob("*.bin") if p != path and p.stat().st_size == len(data))
        path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("how", ["is missing", "is truncated", "is damaged", "swapped"])
def test_a_shard_spoilt_after_the_checks_is_named(shards, how):
    ready = loader(shards)
    sizes = [path.stat().st_size for path in sorted((shards / "train").glob("*.bin"))]
    number = next(n for n in range(1, len(sizes)) if sizes.count(sizes[n]) > 1)
    spoil(shards / "train" / f"chunk-0-{number}.bin", how)
    said = "is damaged" if how == "swapped" else how
    with pytest.raises(UserError, match=rf"shard .*chunk-0-{number}\.bin {said}.*run mm data verify .*--resume"):
        list(ready)


def test_a_shard_that_vanishes_between_two_batches(shards):
    batches = iter(loader(shards))
    next(batches)
    (shards / "train" / "chunk-0-2.bin").unlink()
    with pytest.raises(UserError, match=r"shard .*chunk-0-2\.bin is missing"):
        list(batches)


def test_a_shard_that_is_cut_while_it_is_open(shards):
    batches = iter(loader(shards, context_length=8))
    for _ in range(20):  # until all are open
        next(batches)
    spoil(shards / "train" / "chunk-0-2.bin", "is truncated")
    with pytest.raises(UserError, match=r"^shard .*chunk-0-2\.bin is truncated.*: run mm data verify .*--resume$"):
        list(batches)


def test_few_files_are_open_at_a_time(shards, monkeypatch):
    expected = [batch.tokens.tolist() for batch in loader(shards)]
    monkeypatch.setattr(sequences, "_MAX_OPEN_FILES", 2)
    ready = loader(shards)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert [batch.tokens.tolist() for batch in ready] == expected
    assert len(ready.dataset._files) == 2
    assert not [w for w in warned if w.category is ResourceWarning]  # the others are closed


@pytest.mark.slow
def test_a_worker_names_it_in_one_line(shards):
    ready = loader(shards, num_workers=2)
    spoil(shards / "train" / "chunk-0-1.bin", "is damaged")
    with pytest.raises(UserError) as caught:
        list(ready)
    assert str(caught.value).startswith("shard ")
    assert "\n" not in str(caught.value)
    assert "chunk-0-1.bin is damaged" in str(caught.value)


class Dying:
    """Stands for the processes of a loader: they die when so many batches were asked for, counted over all lives."""

    def __init__(self, loader, deaths, asked):
        self.loader, self.deaths, self.asked = loader, deaths, asked
        self.indices = iter(loader.batch_sampler)

    def __iter__(self):
        return self

    def __next__(self):
        self.asked.append(0)
        if len(self.asked) in self.deaths:
            raise WorkerDied("loader worker 0 (process 7) was killed by SIGKILL")
        batch = self.loader.collate_fn(self.loader.dataset.__getitems__(next(self.indices)))
        return pickle.loads(pickle.dumps(batch))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_no_batch_is_lost_with_the_workers_that_read_it(shards, monkeypatch, capfd, split, rank):
    def batches(**settings):
        options = {"context_length": 32, "global_batch_size": 8, "micro_batch_size": 2, "num_workers": 0, **settings}
        module = TextDataModule(str(shards), **options)
        monkeypatch.setattr(module, "_place", lambda: (rank, 2))
        monkeypatch.setattr(TextDataModule, "validated", property(lambda self: self.sets))
        module.setup("fit")
        ready = module.train_dataloader() if split == "train" else module._loader(module.sets[0], "train", 30)
        return ready, len(ready)

    alone, count = batches()
    expected = [batch.tokens.tolist() for _ in range(2) for batch in alone]
    asked: list = []
    deaths = (1, 2, 7, count + 2, count + 6, 2 * count + 6)
    monkeypatch.setattr(PlainLoader, "_read_ahead", lambda self: Dying(self, deaths, asked))
    monkeypatch.setattr(sequences, "start_server", lambda: None)
    helped, _ = batches(num_workers=2)
    assert [batch.tokens.tolist() for _ in range(2) for batch in helped] == expected
    assert capfd.readouterr().err.count("started anew") == sum(n <= len(asked) for n in deaths) >= 5


@pytest.mark.filterwarnings("ignore")
def test_workers_read_for_predict(shards, monkeypatch):
    """Where Lightning gives the loader batches of indices of its own."""

    class Tokens(lightning.LightningModule):
        def predict_step(self, batch, batch_idx):
            return batch.tokens.tolist()

    monkeypatch.setattr(sequences, "start_server", lambda: None)
    monkeypatch.setattr(TextDataModule, "validated", property(lambda self: []))
    monkeypatch.setattr(TextDataModule, "_evaluation", lambda self, limit: self._loader(self.sets[0], "train", 12))
    predicted = {}
    for num_workers in (0, 2):
        asked: list = []
        monkeypatch.setattr(PlainLoader, "_read_ahead", lambda self, asked=asked: Dying(self, (2,), asked))
        module = TextDataModule(str(shards), 32, 8, 4, num_workers=num_workers)
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        predicted[num_workers] = lightning.Trainer(accelerator="cpu", **quiet).predict(Tokens(), module)
    assert predicted[0] == predicted[2]
    assert len(predicted[0]) == 3


def test_workers_that_keep_dying_end_the_run(shards, monkeypatch, capfd):
    asked: list = []
    monkeypatch.setattr(PlainLoader, "_read_ahead", lambda self: Dying(self, range(5, 100), asked))
    monkeypatch.setattr(sequences, "start_server", lambda: None)
    with pytest.raises(UserError, match=r"worker 0 \(process 7\) was killed by SIGKILL; so did .* 3 times .*--resume"):
        list(loader(shards, num_workers=2))
    assert capfd.readouterr().err.count("started anew") == 2


@pytest.mark.slow
def test_a_killed_worker_is_replaced(shards, capfd):
    expected = [batch.tokens.tolist() for batch in loader(shards)]
    ready, found = loader(shards, num_workers=2), []
    for batch in ready:
        found.append(batch.tokens.tolist())
        if len(found) in (3, 8):
            os.kill(ready._workers[1]._process.pid, signal.SIGKILL)
    assert found == expected
    assert "loader worker 1 (process " in (said := capfd.readouterr().err)
    assert said.count("was killed by SIGKILL, perhaps for lack of memory") == 2


@pytest.mark.slow
def test_an_iteration_that_is_left_early_leaves_nothing_to_the_next(shards):
    """With workers, which have read ahead, as without."""
    beginnings = {}
    for num_workers in (0, 2):
        ready = loader(shards, num_workers=num_workers)
        batches = iter(ready)
        beginnings[num_workers] = [next(batches).tokens.tolist() for _ in range(3)]
        workers, batches = ready._workers, iter(ready)
        beginnings[num_workers] += [next(batches).tokens.tolist() for _ in range(5)]
        assert ready._workers is workers
    assert beginnings[0] == beginnings[2]


@pytest.mark.slow
def test_workers_that_hang_are_named(shards):
    ready = loader(shards, num_workers=1)
    batches = iter(ready)
    ready.timeout = 3
    next(batches)
    os.kill(ready._workers[0]._process.pid, signal.SIGSTOP)
    with pytest.raises(UserError, match="no batch for 3 s: they hang, or the storage does"):
        list(batches)


def test_how_a_process_ended():
    assert how_it_ended(-9, {signal.SIGKILL: "perhaps for lack of memory"}) == (
        "was killed by SIGKILL, perhaps for lack of memory"
    )
    assert how_it_ended(-11, {}) == "was killed by SIGSEGV"
    assert how_it_ended(3, {}) == "ended with exit status 3"


def test_each_checksum_is_made_by_one_process(shards, monkeypatch):
    made = []
    check = sequences.shard_problems
    monkeypatch.setattr(sequences, "shard_problems", lambda path, shard, sums: made.append((path.name, sums)) or [])
    manifest = TextDataModule(str(shards), context_length=32)
    manifest.setup()
    split = manifest.manifest.splits["train"]
    for rank in range(2):
        read = sequences.Sequences([(shards / "train" / s.file, s) for s in split.shards], 33, "uint16", (rank, 2))
        for index in range(len(read)):
            read.__getitems__([index])
    assert sorted(name for name, sums in made if sums) == sorted(shard.file for shard in split.shards)
    assert check(shards / "train" / split.shards[0].file, split.shards[0], True) == []


class Flaky(MemoryFileSystem):
    """Fails so many times before each answer."""

    protocol = "flaky"
    failures = 2
    failed = 0

    def _open(self, path, mode="rb", **options):
        if "r" in mode and Flaky.failed < Flaky.failures:
            Flaky.failed += 1
            raise OSError("503 slow down")
        Flaky.failed = 0
        return super()._open("/" + path.split("/")[-1], mode, **options)


class Foreign(MemoryFileSystem):
    """Raises what the library of a store may raise: no OSError, several lines, a status of HTTP."""

    protocol = "foreign"
    where = "info"
    status = None

    def _fail(self):
        error = RuntimeError("no connection\n  to the store\n")
        error.status = Foreign.status
        raise error

    def info(self, path, **options):
        if Foreign.where == "info":
            self._fail()
        return {"name": path, "size": 5, "type": "file"}

    def exists(self, path, **options):
        return True

    def isdir(self, path):
        return False

    def _open(self, path, mode="rb", **options):
        self._fail()


@pytest.mark.parametrize(
    ("where", "status", "said", "tries"),
    [
        ("info", None, r"cannot list foreign:///a\.txt: no connection to the store$", 0),
        ("open", None, r"cannot read foreign:///a\.txt: no connection to the store \(4 tries\)$", 3),
        ("open", 403, r"cannot read foreign:///a\.txt: not allowed \(403\): no connection to the store \(mend it", 0),
        ("open", 404, r"cannot read foreign:///a\.txt: not there \(404\): no connection to the store \(mend it", 0),
        ("open", 503, r"cannot read foreign:///a\.txt: the server failed \(503\): no connection .* \(4 tries\)$", 3),
        ("info", 403, r"cannot read foreign:///a\.txt: not allowed \(403\): no connection to the store$", 0),
        ("info", 429, r"cannot read foreign:///a\.txt: the server failed \(429\): no connection .* \(4 tries\)$", 3),
    ],
)
def test_whatever_a_store_raises_is_said_in_one_line(monkeypatch, tmp_path, where, status, said, tries):
    waits = []
    monkeypatch.setattr(retry.time, "sleep", waits.append)
    monkeypatch.setattr(Foreign, "where", where)
    monkeypatch.setattr(Foreign, "status", status)
    fsspec.register_implementation("foreign", Foreign, clobber=True)
    with pytest.raises(UserError, match=said) as caught:
        prepare(PrepareConfig(["foreign:///a.txt"], workers=1), tmp_path / "out", progress=False)
    assert "\n" not in str(caught.value)
    assert len(waits) == tries


def test_schemes_that_cannot_be_read_are_named(tmp_path):
    for source, said in (("nosuch://x", "nosuch"), ("reference://x", "cannot list reference://x")):
        with pytest.raises(UserError, match=said):
            prepare(PrepareConfig([source]), tmp_path / "out", progress=False)


@pytest.mark.parametrize("failures", [2, 9])
def test_a_store_that_fails_and_then_answers(monkeypatch, failures):
    waits = []
    monkeypatch.setattr(retry.time, "sleep", waits.append)
    monkeypatch.setattr(Flaky, "failures", failures)
    monkeypatch.setattr(Flaky, "failed", 0)
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    with MemoryFileSystem().open("/text.txt", "wb") as file:
        file.write(b"0123456789" * 1000)
    if failures == 2:
        with opened("flaky:///text.txt", None) as stream:
            assert stream.read(7) == b"0123456"
            broken = iter([OSError("reset by peer"), None])
            stream.raw.seek(7)  # all was read ahead
            inner = stream.raw._file
            read = inner.read

            def unsteady(size):
                error = next(broken, None)
                if error:
                    raise error
                return read(size)

            monkeypatch.setattr(inner, "read", unsteady)
            assert stream.raw.read() == (b"0123456789" * 1000)[7:]
        assert waits == [1.0, 4.0, 1.0, 4.0, 16.0]  # to open it; to read on, and to open it again for that
    else:
        with (
            pytest.raises(UserError, match=r"cannot read flaky:///text\.txt: 503 slow down \(4 tries\)"),
            opened("flaky:///text.txt", None),
        ):
            pass
        assert waits == [1.0, 4.0, 16.0]


def test_a_slow_disk_is_asked_again(shards, monkeypatch):
    ready, waits = loader(shards), []
    monkeypatch.setattr(retry.time, "sleep", waits.append)
    check, answers = sequences.shard_problems, iter([OSError(5, "Input/output error"), OSError(110, "timed out")])

    def failing(*arguments):
        error = next(answers, None)
        if error:
            raise error
        return check(*arguments)

    monkeypatch.setattr(sequences, "shard_problems", failing)
    assert len(list(ready)) == len(ready)
    assert waits == [1.0, 4.0]


def test_a_read_that_fails_is_tried_again(shards, monkeypatch):
    expected, waits = [batch.tokens.tolist() for batch in loader(shards)], []
    monkeypatch.setattr(retry.time, "sleep", waits.append)
    read, failures = sequences.os.pread, iter([OSError(5, "Input/output error")])

    def failing(*arguments):
        for error in failures:
            raise error
        return read(*arguments)

    monkeypatch.setattr(sequences.os, "pread", failing)
    assert [batch.tokens.tolist() for batch in loader(shards)] == expected
    assert waits == [1.0]
