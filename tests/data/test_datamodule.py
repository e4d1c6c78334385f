import collections
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from corpus_samples import make_texts, write_lines
from small_datamodules import Recorder, SaveAt, blocks, module, rows, trainer

from mm_lightning.data.prepare import prepare
from mm_lightning.data.prepare_config import PrepareConfig
from mm_lightning.data.sequences import EvaluationOrder, TrainingOrder
from mm_lightning.errors import UserError


def test_batches_are_the_shards(folder):
    data = module(folder)
    expected = blocks(folder, "validation", 33)
    batches = list(data.val_dataloader())
    assert [tuple(row) for batch in batches for row in batch.tokens.tolist()] == [row[:-1] for row in expected]
    targets = [tuple(row) for batch in batches for row in batch.targets.tolist()]
    assert targets == [tuple(-100 if t == 256 else t for t in row[1:]) for row in expected]
    begins = torch.cat([batch.documents.position for batch in batches]) == 0
    wanted = torch.tensor([[i == 0 or t == 256 for i, t in enumerate(row[:-1])] for row in expected])
    assert begins.equal(wanted)


def test_an_epoch_is_a_shuffled_whole_number_of_steps(folder):
    data = module(folder)
    loader = data.train_dataloader()
    first, second = rows(loader), rows(loader)
    everything = [row[:-1] for row in blocks(folder, "train", 33)]
    assert len(first) == len(second) == len(everything) // 8 * 8 == 4 * len(loader)
    for epoch in (first, second):
        assert not collections.Counter(epoch) - collections.Counter(everything)
    assert first != second
    assert first != everything[: len(first)]
    assert rows(data.train_dataloader()) == first
    assert rows(module(folder, seed=1).train_dataloader()) != first


def test_workers_do_not_change_the_order(folder):
    alone, helped = module(folder), module(folder, num_workers=2)
    one, two = alone.train_dataloader(), helped.train_dataloader()
    for count in (3, len(one), len(one)):  # left early, it goes on from there
        expected = rows(itertools.islice(one, count))
        assert rows(itertools.islice(two, count)) == expected
    assert one.state_dict() == two.state_dict() == {"sequences": 4 * (3 + 2 * len(one))}
    assert rows(helped.val_dataloader()) == rows(alone.val_dataloader())


def test_evaluation_can_be_limited_to_evenly_spaced_sequences(folder):
    data = module(folder, validation_sequences=5)
    everything = [row[:-1] for row in blocks(folder, "validation", 33)]
    count = len(everything)
    assert rows(data.val_dataloader()) == [everything[n * count // 5] for n in range(5)]
    assert rows(data.test_dataloader()) == everything


def test_each_epoch_opens_the_shards_in_another_order():
    """Sequences are shuffled within windows of 64 shards: with more shards than that, the first window has others."""
    order = TrainingOrder([1] * 200, 4, 4, seed=3)
    windows = []
    for epoch in range(2):
        order.start = 200 * epoch
        windows.append(set(itertools.islice(order, 64)))
    assert windows[0] != windows[1]


@pytest.mark.parametrize("shards", [[40], [7, 0, 13, 20], [1] * 200])
@pytest.mark.parametrize(("world_size", "batch"), [(1, 4), (2, 4), (4, 2), (3, 1)])
def test_devices_share_one_list(shards, world_size, batch):
    multiple, steps = 24, 24 // (world_size * batch)
    alone = list(TrainingOrder(shards, 24, multiple, seed=3))
    assert len(alone) == len(set(alone)) == sum(shards) // 24 * 24
    devices = [TrainingOrder(shards, batch, multiple, 3, rank, world_size) for rank in range(world_size)]
    lists = [np.array(list(device)).reshape(-1, steps * batch) for device in devices]
    assert len({len(device) for device in devices}) == 1
    for step, together in enumerate(np.concatenate(lists, 1)):  # each optimization step sees the same sequences
        assert sorted(together) == sorted(alone[24 * step : 24 * step + 24])
    for start in (4, 24, 36, 24 * 9):  # also when it goes on, in a later epoch too
        goes_on = TrainingOrder(shards, 4, multiple, 3)
        goes_on.start = start
        endless = alone.copy()
        while len(endless) < start + goes_on.total:
            next_epoch = TrainingOrder(shards, 4, multiple, 3)
            next_epoch.start = len(endless)
            endless += list(next_epoch)
        assert list(goes_on) == endless[start : start + goes_on.total]


def test_evaluation_is_dealt_out_evenly():
    for count, world_size, limit in [(10, 3, None), (10, 1, None), (100, 2, 7), (5, 5, 9)]:
        parts = [list(EvaluationOrder(count, limit, rank, world_size)) for rank in range(world_size)]
        assert len({len(part) for part in parts}) == 1
        seen = [n for part in parts for n in part]
        assert len(seen) == len(set(seen)) == min(count, limit or count) // world_size * world_size


@pytest.mark.parametrize("limit", [None, 6])
@pytest.mark.filterwarnings("ignore")
def test_lightning_goes_on_exactly(folder, tmp_path, limit):
    steps = len(module(folder, context_length=64).train_dataloader()) // 2  # of an epoch
    at = {1, steps - 1, steps, steps + 2} if limit is None else {3, 7}
    settings = {"accumulate_grad_batches": 2, "max_steps": 2 * steps + 1, "limit_train_batches": limit}
    whole = Recorder()
    trainer(callbacks=[SaveAt(tmp_path, at)], **settings).fit(whole, module(folder, context_length=64))
    assert len(whole.seen) == 2 * (2 * steps + 1)
    for step in at:
        resumed = Recorder()
        path = str(tmp_path / f"{step}.ckpt")
        trainer(**settings).fit(resumed, module(folder, context_length=64), ckpt_path=path)
        assert resumed.seen == whole.seen[2 * step :], f"after step {step}"


@pytest.mark.filterwarnings("ignore")
def test_every_stage_of_lightning_runs(folder):
    model = Recorder()
    trainer(overfit_batches=2, max_epochs=2).fit(model, module(folder))
    assert model.seen[:2] == model.seen[2:]
    one = trainer(limit_predict_batches=2)
    for stage in (one.validate, one.test, one.predict):
        stage(Recorder(), module(folder))


_TWO = """
import json, sys, torch
from mm_lightning.data.datamodule import TextDataModule
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=int(sys.argv[3]), world_size=2)
data = TextDataModule(sys.argv[1], 32, 8, 4, num_workers=0)
data.setup("fit")
for batch in data.train_dataloader():
    print(json.dumps(batch.tokens.tolist()))
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_the_process_group_says_which_data(folder, rank):
    from torch.testing._internal.distributed.fake_pg import FakeStore

    alone = [batch.tokens.tolist() for batch in module(folder).train_dataloader()]
    torch.distributed.init_process_group("fake", rank=rank, world_size=2, store=FakeStore())
    try:
        mine = [batch.tokens.tolist() for batch in module(folder).train_dataloader()]
        with pytest.raises(UserError, match="global_batch_size 8 is not a multiple of 16, micro_batch_size 8 on 2"):
            module(folder, micro_batch_size=8)
    finally:
        torch.distributed.destroy_process_group()
    assert mine == alone[rank::2]


@pytest.mark.slow
def test_two_processes_see_different_data(folder, tmp_path):
    command = [sys.executable, "-c", _TWO, str(folder), str(tmp_path / "store")]
    both = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(2)]
    seen = [[json.loads(line) for line in process.communicate()[0].splitlines()] for process in both]
    alone = [batch.tokens.tolist() for batch in module(folder).train_dataloader()]
    assert seen[0] == alone[0::2]
    assert seen[1] == alone[1::2]


def test_the_folder_is_made_on_first_use(tmp_path, capsys):
    source = write_lines(tmp_path / "in.jsonl", make_texts(60))
    config = PrepareConfig([source], validation_fraction=0.2, workers=1)
    assert module(tmp_path / "data", prepare=config).manifest.vocab_size == 258
    (tmp_path / "in.jsonl").unlink()
    module(tmp_path / "data", prepare=config)
    assert f"reusing the data prepared in {tmp_path / 'data'}" in capsys.readouterr().err
    other = PrepareConfig([source], tokenizer="train", validation_fraction=0.2)
    with pytest.raises(UserError, match="tokenizer 'bytes', not 'train'"):
        module(tmp_path / "data", prepare=other)


def test_no_validation_split(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", make_texts(60))
    prepare(PrepareConfig([source], validation_fraction=0, workers=1), tmp_path / "data", progress=False)
    data = module(tmp_path / "data")
    assert data.val_dataloader() == []
    trainer(max_steps=2).fit(Recorder(), data)
    with pytest.raises(UserError, match="no validation split"):
        data.test_dataloader()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context_length": 10**6}, "context_length 1000000 does not fit the train split"),
        ({"global_batch_size": 4000}, "fewer than global_batch_size 4000"),
        ({"micro_batch_size": 3}, "global_batch_size 8 is not a multiple of micro_batch_size 3"),
        ({"context_length": 0}, "context_length takes a whole number of at least 1, got 0"),
        ({"validation_sequences": 0}, "validation_sequences takes a whole number of at least 1, got 0"),
        ({"path": "/nowhere/x"}, "no prepared data in /nowhere/x: run `mm data prepare"),
    ],
)
def test_mistakes_are_named(folder, settings, message):
    with pytest.raises(UserError, match=message):
        module(**{"folder": settings.pop("path", folder), **settings})


def test_a_truncated_shard_is_named_before_training(copy):
    shard = copy / "train" / "chunk-0-0.bin"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"chunk-0-0\.bin is truncated .* run mm data verify"):
        module(copy)
