import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus_samples import make_texts, write_lines

from mm_lightning.cli import main
from mm_lightning.data import generator
from mm_lightning.data import packing as whole_rows
from mm_lightning.data import regbench_metrics as metrics
from mm_lightning.data.datamodule import TextDataModule
from mm_lightning.data.generator import generate_folder
from mm_lightning.data.inspect import read_shard
from mm_lightning.data.manifest import Manifest
from mm_lightning.data.packing import pack
from mm_lightning.data.prepare import prepare
from mm_lightning.data.prepare_config import PrepareConfig
from mm_lightning.data.regbench import BOS, EOS, RegBenchConfig, generate
from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.data.verify import verify
from mm_lightning.errors import UserError

CONFIG = RegBenchConfig(12, 7, seed=3)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """12 training and 7 test sequences in rows of 1,001 tokens. Not to be changed."""
    folder = tmp_path_factory.mktemp("regbench") / "data"
    generate_folder(CONFIG, folder, 1000, progress=False)
    return folder


def samples(config=CONFIG):
    taken = set()
    return {split: list(generate(config, split, taken)) for split in ("validation", "train")}


def rows(folder, split):
    manifest = Manifest.load(folder)
    parts = [read_shard(folder / split / s.file, "uint16", s.tokens) for s in manifest.splits[split].shards]
    return np.concatenate(parts).reshape(-1, manifest.context_length + 1)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def test_no_two_automata_have_one_language():
    made = samples(RegBenchConfig(900, 300))
    forms = [sample.automaton for split in made.values() for sample in split]
    assert len(set(forms)) == len(forms) == 1200
    again = list(generate(RegBenchConfig(5, 1), "train", {made["train"][2].automaton}))
    fresh = list(generate(RegBenchConfig(5, 1), "train", set()))
    assert [one == two for one, two in zip(again, fresh, strict=True)] == [True, True, False, True, True]


def test_a_sequence_depends_on_seed_split_and_number():
    made = samples()
    assert samples() == made
    assert samples(RegBenchConfig(20, 7, seed=3))["validation"] == made["validation"]
    assert samples(RegBenchConfig(20, 7, seed=3))["train"][:12] == made["train"]
    other = samples(RegBenchConfig(12, 7, seed=4))
    texts = [str(s.words) for m in (made, other) for split in m.values() for s in split]
    assert len(set(texts)) == len(texts)


def test_the_same_again_gives_the_same_files(bench, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(generator, "crc32", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            generate_folder(CONFIG, tmp_path / "cut", 1000, progress=False)
    with pytest.raises(UserError, match="no prepared data"):
        Manifest.load(tmp_path / "cut")
    with pytest.raises(UserError, match="unfinished preparation of something else"):
        generate_folder(RegBenchConfig(13, 7, seed=3), tmp_path / "cut", 1000, progress=False)
    made = generate_folder(CONFIG, tmp_path / "cut", 1000, progress=False)
    assert contents(tmp_path / "cut") == contents(bench)
    assert generate_folder(CONFIG, bench, 1000) == made
    assert "reusing" in capsys.readouterr().err


def test_documents_lie_whole_in_rows(bench):
    manifest, made = Manifest.load(bench), samples()
    assert (manifest.vocab_size, manifest.context_length) == (21, 1000)
    for name, split in manifest.splits.items():
        laid = rows(bench, name)
        assert laid.size == sum(shard.tokens for shard in split.shards)
        documents = []
        for row in laid.tolist():
            assert row[0] == BOS
            begins = [n for n, token in enumerate(row) if token == BOS]
            parts = [row[b:e] for b, e in zip(begins, [*begins[1:], len(row)], strict=True)]
            full = [part for part in parts if part != [BOS]]
            assert parts[: len(full)] == full  # the filling comes last
            documents += full
        assert Counter(map(tuple, documents)) == Counter(tuple(sample.tokens()) for sample in made[name])
        lengths = [len(document) for document in documents]
        assert (split.documents, split.tokens, split.longest_document) == (len(lengths), sum(lengths), max(lengths))
        assert split.bytes == sum(len(s.words) - 1 + sum(map(len, s.words)) for s in made[name])
        assert sum(split.length_histogram) == len(lengths)


def test_filling_is_not_predicted(bench):
    data = TextDataModule(str(bench), 1000, 2, 2, num_workers=0)
    data.setup()
    split = data.manifest.splits["validation"]
    targets = torch.cat([batch.targets.flatten() for batch in data.val_dataloader()])
    predicted = targets[targets != -100]
    assert len(predicted) == split.tokens - split.documents
    assert (predicted == EOS).sum() == split.documents
    assert BOS not in predicted
    counts = predicted.bincount().double() / len(predicted)
    assert split.unigram_entropy == pytest.approx(-(counts * counts.log()).nansum().item())


def test_packing_takes_the_first_row_with_room(monkeypatch):
    assert pack([6, 5, 4, 5, 3, 10, 2], 10) == [[0, 2], [1, 3], [4, 6], [5]]
    monkeypatch.setattr(whole_rows, "_OPEN_ROWS", 1)
    assert pack([6, 5, 4, 5, 3, 10, 2], 10) == [[0], [1, 2], [3, 4], [5], [6]]


def test_the_truth_lies_beside_the_rows(bench):
    laid, allowed = rows(bench, "validation"), np.load(bench / "validation" / "allowed.npy")
    assert allowed.shape == (len(laid), 1000)
    assert allowed.dtype == np.uint32
    automata = {tuple(s.tokens()): s.automaton for s in samples()["validation"]}
    counted = 0
    for row, masks in zip(laid.tolist(), allowed.tolist(), strict=True):
        edges, state, expected = (), 0, []
        for n, token in enumerate(row[:-1]):
            following = row[n + 1]
            if token == BOS and following != BOS:
                edges = automata[tuple(row[n : row.index(EOS, n) + 1])].edges
            state = 0 if token >= 18 else dict(edges[state])[token]
            letters = [a for a, _ in edges[state]] if following < 18 else []
            expected.append(sum(2**a for a in letters))
        assert masks == expected
        counted += sum(mask > 0 for mask in masks)
    assert counted == sum(len(word) for s in samples()["validation"] for word in s.words)


def test_the_tokenizer_is_a_token_a_letter(bench):
    tokenizer = load_tokenizer(bench)
    assert (tokenizer.vocab_size, tokenizer.bos, tokenizer.eos) == (21, BOS, EOS)
    assert tokenizer.encode("abr|c") == [0, 1, 17, 18, 2]
    assert tokenizer.decode([BOS, 0, 1, 17, 18, 2, EOS]) == "abr|c"
    assert tokenizer.encode("Xa z\n|") == [0, 18]
    assert tokenizer.encode("<|end_of_text|>")[0] == 18


def test_measures_by_hand():
    logits = torch.full((1, 4, 21), -torch.inf)
    logits[0, 0, [0, 3]] = torch.tensor([0.75, 0.25]).log()  # allowed: a, b; |.75-.5| + .5 + .25 over 2
    logits[0, 1, [0, 3]] = torch.tensor([0.25, 0.75]).log()  # allowed: a; .75
    logits[0, 2] = 5.0  # not counted
    logits[0, 3, 2] = 0.0
    logits[0, 3, 18:] = 9.0  # no letters
    allowed = torch.tensor([[0b11, 0b1, 0, 0b1100]])  # the last: c, d; |1-.5| + .5 over 2
    found = metrics.measures()
    found.update(logits, allowed)
    found.update(torch.zeros(2, 18), torch.tensor([0, 2**18 - 1]))  # uniform is right: 0
    values = found.compute()
    assert values["accuracy"].item() == pytest.approx(3 / 4)
    assert values["total_variation"].item() == pytest.approx((0.5 + 0.75 + 0.5 + 0) / 4)


def test_baselines_by_hand():
    # abc|abd, of which a may be followed by b alone and b by c or d
    tokens = np.array([BOS, 0, 1, 2, 18, 0, 1, 3, EOS])
    masks = np.array([1, 2, 12, 0, 1, 2, 12, 0, 0])
    found = metrics.baselines([tokens], [masks])
    accuracy, distance = found["validation/accuracy"], found["validation/total_variation"]
    assert (accuracy["oracle"], distance["oracle"]) == (1, 0)
    assert accuracy["uniform"] == pytest.approx(2 / 6)  # the first of equals, a, is right at both beginnings
    assert distance["uniform"] == pytest.approx((4 * 17 / 18 + 2 * 16 / 18) / 6)
    # It sees: nothing, {a} (as nothing followed a), {a, b}, then a after the beginning, b after a, c after b.
    assert accuracy["2-gram in context"] == pytest.approx(4 / 6)
    assert distance["2-gram in context"] == pytest.approx((17 / 18 + 1 + 1 + 0 + 0 + 1 / 2) / 6)
    # Contexts of two and three letters bring nothing new here.
    assert distance["4-gram in context"] == distance["3-gram in context"] == distance["2-gram in context"]


def test_longer_contexts_tell_more():
    # abc|dba|abc: b is followed by c where a came before it, by a where d did
    tokens = np.array([BOS, 0, 1, 2, 18, 3, 1, 0, 18, 0, 1, 2, EOS])
    masks = np.array([9, 2, 4, 0, 9, 2, 1, 0, 9, 2, 4, 0, 0])
    found = metrics.baselines([tokens], [masks])
    accuracy, distance = found["validation/accuracy"], found["validation/total_variation"]
    # Right at the three beginnings and at the second b behind a; 3-grams know the last c too.
    assert accuracy["2-gram in context"] == pytest.approx(4 / 9)
    assert accuracy["3-gram in context"] == accuracy["4-gram in context"] == pytest.approx(5 / 9)
    first = [16 / 18, 1, 1, 1 / 2, 3 / 4, 1, 0, 0]
    assert distance["2-gram in context"] == pytest.approx((sum(first) + 1 / 2) / 9)
    assert distance["3-gram in context"] == distance["4-gram in context"] == pytest.approx(sum(first) / 9)


def test_the_stored_baselines_are_ordered(bench):
    found = json.loads((bench / "baselines.json").read_text())
    names = ["oracle", "2-gram in context", "3-gram in context", "4-gram in context", "uniform"]
    for values in found.values():
        assert list(values) == names
    accuracy, distance = found["validation/accuracy"], found["validation/total_variation"]
    assert (accuracy["oracle"], distance["oracle"]) == (1, 0)
    assert accuracy["uniform"] < 0.4 < accuracy["2-gram in context"] < accuracy["3-gram in context"] < 1
    assert distance["uniform"] > distance["2-gram in context"] > distance["3-gram in context"] > 0


def test_the_commands(tmp_path, capsys):
    folder = str(tmp_path / "out")
    sizes = ["--train_sequences", "5", "--test_sequences", "2", "--context_length", "960", "--progress", "false"]
    assert main(["data", "regbench", folder, *sizes]) == 0
    assert main(["data", "verify", folder]) == 0
    assert main(["data", "inspect", folder, "--samples", "1"]) == 0
    assert "letters of RegBench" in " ".join(capsys.readouterr().out.split())
    truth = tmp_path / "out" / "validation" / "allowed.npy"
    truth.write_bytes(truth.read_bytes()[:-1] + b"x")
    assert verify(folder) == [f"{truth} is damaged (its checksum is not the one it was written with)"]
    truth.unlink()
    assert verify(folder, checksums=False) == [f"{truth} is missing"]


def test_mistakes_are_named(bench, tmp_path):
    with pytest.raises(UserError, match="train_sequences 12, not 13"):
        generate_folder(RegBenchConfig(13, 7, seed=3), bench, 1000)
    with pytest.raises(UserError, match="context_length 949 is too short for regbench: at least 950"):
        generate_folder(CONFIG, tmp_path / "x", 949)
    with pytest.raises(UserError, match="train_sequences takes a whole number of at least 1, got 0"):
        RegBenchConfig(0)
    with pytest.raises(UserError, match=r"rows for context_length 1000, not 500: set data\.context_length to 1000"):
        TextDataModule(str(bench), 500, 1, 1).setup()
    text = PrepareConfig([write_lines(tmp_path / "in.jsonl", make_texts(20))], workers=1, validation_fraction=0.0)
    with pytest.raises(UserError, match="prepare and generate both say"):
        TextDataModule(str(bench), prepare=text, generate=CONFIG)
    prepare(text, tmp_path / "text", progress=False)
    with pytest.raises(UserError, match=r"not \['regbench'\]"):
        TextDataModule(str(tmp_path / "text"), generate=CONFIG).prepare_data()
    with pytest.raises(UserError, match=r"sources \['regbench'\], not"):
        prepare(text, bench)
