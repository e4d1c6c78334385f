"""Several data sets in given proportions."""

import collections
import itertools

import numpy as np
import pytest
from corpus_samples import make_texts, write_lines
from small_datamodules import Recorder, SaveAt, blocks, module, rows, trainer

from mm_lightning.data.datamodule import TextDataModule
from mm_lightning.data.facts import FactsConfig
from mm_lightning.data.generator import generate_folder
from mm_lightning.data.mixture import MixedOrder, bits_per_byte, exact_shares, folders, mean, read, short_names
from mm_lightning.data.prepare import prepare
from mm_lightning.data.prepare_config import PrepareConfig
from mm_lightning.data.sequences import TrainingOrder
from mm_lightning.errors import UserError

SIZES = {"a": [40, 0, 35], "b": [7, 6], "c": [200] * 3}
BLOCK = 1 << 14


def mixed(weights, **settings):
    options = {"batch": 8, "multiple": 8, "seed": 3, **settings}
    return MixedOrder([SIZES[name] for name in weights], exact_shares(list(weights.values())), **options)


def taken(weights, count, start=0):
    """So many sequences, as the set and the number in it."""
    begins = np.cumsum([0, *(sum(SIZES[name]) for name in weights)])
    numbers = np.fromiter(mixed(weights).since(start), dtype=int, count=count)
    turns = np.searchsorted(begins, numbers, "right") - 1
    names = list(weights)
    return [(names[turn], number) for turn, number in zip(turns, (numbers - begins[turns]).tolist(), strict=True)]


@pytest.mark.parametrize(
    "weights",
    [
        {"a": 0.7, "b": 0.3},
        {"a": 1, "b": 1, "c": 1},
        {"a": 0.693584, "c": 0.306416},
        {"a": 1, "b": 10000},
    ],
)
def test_proportions_are_exact(weights):
    names = np.array([name for name, _ in taken(weights, 2 * BLOCK)])
    for name, weight in weights.items():
        off = np.cumsum(names == name) - np.arange(1, 2 * BLOCK + 1) * weight / sum(weights.values())
        assert abs(off[BLOCK - 1 :: BLOCK]).max() < 1 + 1e-6
        assert abs(off).max() < 2.5  # nowhere far from its share, so that every batch has about what it should


def test_each_set_has_epochs_of_its_own():
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    lists = collections.defaultdict(list)
    for name, number in taken(weights, 2 * BLOCK):
        lists[name].append(number)
    for name, numbers in lists.items():
        size = sum(SIZES[name])
        epochs = [tuple(numbers[at : at + size]) for at in range(0, len(numbers) - size + 1, size)]
        assert len(epochs) == len(numbers) // size > 9
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len(set(epochs)) == len(epochs)  # reshuffled each time
    # two sets of the same shape are not shuffled alike, nor are two seeds
    SIZES["again"] = SIZES["a"]
    twins = list(taken({"a": 1, "again": 1}, 300))
    assert [n for name, n in twins if name == "a"][:75] != [n for name, n in twins if name == "again"][:75]
    del SIZES["again"]
    assert list(itertools.islice(mixed(weights, seed=4).since(0), 50)) != list(
        itertools.islice(mixed(weights).since(0), 50)
    )


def test_any_sequence_follows_from_its_number_alone():
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    endless = list(taken(weights, 2 * BLOCK + 100))
    for start in (1, 8, 700, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK):
        assert list(taken(weights, 90, start)) == endless[start : start + 90]
    far = 10**10 + 5
    assert list(taken(weights, 20, far))[7:] == list(taken(weights, 13, far + 7))


@pytest.mark.parametrize(("world_size", "batch"), [(1, 4), (2, 4), (4, 2), (3, 1)])
def test_devices_share_one_list(world_size, batch):
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    settings = {"multiple": 24, "seed": 5}
    steps = 24 // (world_size * batch)
    for start in (0, 48, 24 * 41):
        alone = mixed(weights, batch=24, **settings)
        alone.start = start
        expected = list(alone)
        assert len(expected) == (75 + 13 + 600) // 24 * 24
        devices = [mixed(weights, batch=batch, rank=r, world_size=world_size, **settings) for r in range(world_size)]
        for device in devices:
            device.start = start
        lists = [np.array(list(device)).reshape(-1, steps * batch) for device in devices]
        for step, together in enumerate(np.concatenate(lists, 1)):
            assert sorted(together) == sorted(expected[24 * step : 24 * step + 24])


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """60 documents of another kind, fewer than `folder` has."""
    root = tmp_path_factory.mktemp("code")
    source = write_lines(root / "in.jsonl", [text.upper() for text in make_texts(60)])
    prepare(PrepareConfig([source], validation_fraction=0.2, workers=1), root / "code", progress=False)
    return root / "code"


def path(folder, code):
    return {str(folder): 3, str(code): 1}


def mixture(folder, code, **settings):
    return made(path(folder, code), **settings)


def made(weights, **settings):
    options = {"context_length": 32, "global_batch_size": 8, "micro_batch_size": 4, "num_workers": 0, **settings}
    data = TextDataModule(weights, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def test_batches_are_the_shards_in_proportion(folder, code):
    data = mixture(folder, code)
    loader = data.train_dataloader()
    seen = rows(loader)
    sets = [[row[:-1] for row in blocks(place, "train", 33)] for place in (folder, code)]
    assert len(seen) == (len(sets[0]) + len(sets[1])) // 8 * 8 == 4 * len(loader)
    small = [row for row in seen if row in set(sets[1])]
    assert abs(len(small) - len(seen) / 4) <= 2
    assert len(small) > len(sets[1])  # it comes again
    assert collections.Counter(small[: len(sets[1])]) == collections.Counter(sets[1])
    large = [row for row in seen if row not in set(sets[1])]
    assert not collections.Counter(large) - collections.Counter(sets[0])


def test_the_order_in_which_sets_are_named_does_not_matter(folder, code):
    one, two = made({str(folder): 0.75, str(code): 0.25}), made({str(code): 10, str(folder): 30})
    assert rows(one.train_dataloader()) == rows(two.train_dataloader())


@pytest.mark.slow
def test_workers_do_not_change_the_order(folder, code):
    one, two = mixture(folder, code).train_dataloader(), mixture(folder, code, num_workers=2).train_dataloader()
    for count in (3, len(one)):
        expected = rows(itertools.islice(one, count))
        assert rows(itertools.islice(two, count)) == expected
    assert one.state_dict() == two.state_dict() == {"sequences": 4 * (3 + len(one))}


class Evaluator(Recorder):
    def __init__(self):
        super().__init__()
        self.evaluated = collections.Counter()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.evaluated[dataloader_idx] += len(batch)

    test_step = predict_step = validation_step


@pytest.mark.filterwarnings("ignore")
def test_lightning_goes_on_exactly(folder, code, tmp_path):
    steps = len(mixture(folder, code, context_length=64).train_dataloader()) // 2  # of an epoch
    at = {1, steps, steps + 2}
    settings = {"accumulate_grad_batches": 2, "max_steps": 2 * steps + 1}
    whole = Evaluator()
    trainer(callbacks=[SaveAt(tmp_path, at)], **settings).fit(whole, mixture(folder, code, context_length=64))
    for step in at:
        resumed = Evaluator()
        checkpoint = str(tmp_path / f"{step}.ckpt")
        trainer(**settings).fit(resumed, mixture(folder, code, context_length=64), ckpt_path=checkpoint)
        assert resumed.seen == whole.seen[2 * step :], f"after step {step}"


@pytest.mark.filterwarnings("ignore")
def test_every_stage_reads_each_set(folder, code, tmp_path):
    counts = [len(blocks(s.folder, "validation", 33)) for s in mixture(folder, code).validated]
    for stage, limit in (("validate", 5), ("test", None), ("predict", 5)):
        model = Evaluator()
        getattr(trainer(), stage)(model, mixture(folder, code, validation_sequences=5))
        assert model.evaluated == {n: min(limit or count, count) for n, count in enumerate(counts)}
    model = Evaluator()
    trainer(overfit_batches=2, max_epochs=2).fit(model, mixture(folder, code, num_workers=0))
    assert model.seen[:2] == model.seen[2:]
    source = write_lines(tmp_path / "in.jsonl", make_texts(60))
    prepare(PrepareConfig([source], validation_fraction=0, workers=1), tmp_path / "all", progress=False)
    data = made({str(tmp_path / "all"): 1, str(code): 2})
    assert [s.folder for s in data.validated] == [code]
    assert rows(data.val_dataloader()) == [row[:-1] for row in blocks(code, "validation", 33)]


def test_the_whole_is_the_mean_by_weight(folder, code):
    sets = sorted(read(folders(path(folder, code))), key=lambda s: -s.share)
    losses = [2.0, 4.0]
    assert mean(sets, losses) == 2.5
    splits = [s.manifest.splits["validation"] for s in sets]
    # of a million tokens in these proportions: bits, and bytes of text
    tokens = [750_000, 250_000]
    bits = sum(n * loss / np.log(2) for n, loss in zip(tokens, losses, strict=True))
    text = sum(n * s.bytes / (s.tokens - s.documents) for n, s in zip(tokens, splits, strict=True))
    assert bits_per_byte(sets, 2.5) == pytest.approx(bits / text)
    assert bits_per_byte(sets[:1], 2.0) == pytest.approx(sets[0].manifest.bits_per_byte(2.0))


def test_names_tell_sets_apart(tmp_path):
    assert short_names([tmp_path / "x" / "web", tmp_path / "y" / "code"]) == ["web", "code"]
    assert short_names([tmp_path / "x" / "v1", tmp_path / "y" / "v1"]) == ["x/v1", "y/v1"]
    assert short_names([tmp_path]) == [tmp_path.name]


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), 1e-6])
def test_weights_are_shares(weight):
    with pytest.raises(UserError, match=r"data\.path: the weight of b is "):
        folders({"a": 1, "b": weight})


def test_mistakes_are_named(folder, code, tmp_path):
    with pytest.raises(UserError, match="is empty"):
        folders({})
    link = tmp_path / "link"
    link.symlink_to(code)
    for same in (f"{code}/", f"{code}/../{code.name}", str(link)):
        with pytest.raises(UserError, match="are the same folder: name it once"):
            folders({str(code): 1, same: 2})
    with pytest.raises(UserError, match=r"no prepared data in .*nothing: run `mm data prepare"):
        made({str(folder): 1, str(tmp_path / "nothing"): 1})
    with pytest.raises(UserError, match="prepare prepares one folder, and path names 2"):
        TextDataModule(path(folder, code), prepare=PrepareConfig(["x"]))
    with pytest.raises(UserError, match="fewer than global_batch_size 40000"):
        mixture(folder, code, global_batch_size=40000)
    short = write_lines(tmp_path / "short.jsonl", ["abc"] * 3)
    prepare(PrepareConfig([short], validation_fraction=0, workers=1), tmp_path / "short", progress=False)
    with pytest.raises(UserError, match=r"context_length 32 does not fit the train split in .*short"):
        made({str(folder): 1, str(tmp_path / "short"): 1})
    source = write_lines(tmp_path / "in.jsonl", make_texts(60))
    other = PrepareConfig([source], tokenizer="train", vocab_size=300, validation_fraction=0, workers=1)
    prepare(other, tmp_path / "other", progress=False)
    with pytest.raises(UserError, match=r"have different tokenizers, .* prepare one again with --tokenizer"):
        made({str(folder): 1, str(tmp_path / "other"): 1})
    generate_folder(FactsConfig(5, 2), tmp_path / "facts", 64, progress=False)
    with pytest.raises(UserError, match="lie in rows for context_length 64, not 32"):
        made({str(folder): 1, str(tmp_path / "facts"): 1})


def test_one_folder_is_no_mixture(folder):
    alone = made({str(folder): 0.2})
    assert rows(alone.train_dataloader()) == rows(module(folder).train_dataloader())
    assert type(alone.train_dataloader().sampler) is TrainingOrder
