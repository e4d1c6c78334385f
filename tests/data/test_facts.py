import json
import re
from random import Random

import pytest

from mm_lightning.cli import main
from mm_lightning.data.datamodule import TextDataModule
from mm_lightning.data.facts import (
    ATTRIBUTES,
    WORDS,
    FactsConfig,
    draw_documents,
    syllable_tokenizer,
    training_text,
    word,
)
from mm_lightning.data.generator import generate_folder
from mm_lightning.data.inspect import read_shard
from mm_lightning.data.manifest import Manifest
from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.data.verify import verify
from mm_lightning.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return syllable_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


def test_words_are_different():
    words = {word(n) for n in range(WORDS)}
    assert len(words) == WORDS == 6400
    assert all(re.fullmatch("([bdfghjklmnprstvz][aeiou]){2}", one) for one in words)
    assert not words & set(ATTRIBUTES)


def test_documents():
    documents = draw_documents(Random(3), 500)
    assert documents[:20] == draw_documents(Random(3), 20)
    assert len({document.name for document in documents}) == 500
    for document in documents:
        assert len(document.facts) == 4
        told = re.findall(r" (\w+) (\w+) (\w+) \.", document.text)
        assert told == [(document.name, attribute, value) for attribute, value in document.facts.items()]


@pytest.mark.parametrize("kind", ["own", "bytes"])
def test_every_question_has_its_answer_in_the_text(tokenizer, kind):
    chosen = tokenizer if kind == "own" else load_tokenizer("bytes")
    for n in range(30):
        text = training_text(Random(n), chosen, 513)
        assert len(chosen.encode(text)) <= 511
        told = {match[:2]: match[2] for match in re.findall(r" (\w+) (\w+) (\w+) \.", text.split("?")[0])}
        asked = re.findall(r"^\? (\w+) (\w+) (\w+) \.$", text, re.MULTILINE)
        assert len(asked) == len(set(asked)) > 0
        assert all(told[name, attribute] == value for name, attribute, value in asked)


def test_the_own_tokenizer_takes_a_token_a_syllable(tokenizer):
    text = "# mira color tavu . mira food belo .\n? mira food"
    pieces = [tokenizer.decode([n]) for n in tokenizer.encode(text)]
    assert pieces == ["#", " mi", "ra", " color", " ta", "vu", " .", " mi", "ra", " food", " be", "lo", " .", "\n",
                      "?", " mi", "ra", " food"]  # fmt: skip
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == 8 + 2 * 80 + 4 + 2
    assert len({tokenizer.bos, tokenizer.eos} | set(range(172))) == 174
    # what is not of the language is left out, the names of special tokens too
    assert tokenizer.encode("X<|end_of_text|>" + text) != []
    assert not {tokenizer.bos, tokenizer.eos} & set(tokenizer.encode("X<|end_of_text|>" + text))


def test_a_prepared_folder(tmp_path, capsys):
    folder = tmp_path / "facts"
    options = ["--documents", "40", "--test_documents", "10", "--context_length", "256", "--progress", "false"]
    assert main(["data", "facts", "--output", str(folder), *options]) == 0
    assert not verify(folder)
    made = Manifest.load(folder)
    assert made.context_length == 256
    assert made.splits["train"].documents == 40
    tokenizer = load_tokenizer(folder)
    for split, count in (("train", 40), ("validation", 10)):
        (shard,) = made.splits[split].shards
        rows = read_shard(folder / split / shard.file, made.dtype, shard.tokens).reshape(-1, 257)
        texts = [text for row in rows for text in tokenizer.decode(row, special=True).split("<|end_of_text|>")[:-1]]
        texts = {text.removeprefix("<|begin_of_text|>") for text in texts}
        assert texts == set(FactsConfig(40, 10).texts(split, tokenizer, 257))
        assert len(texts) == count
    # fewer are the first of more, and the same command does nothing
    few = list(FactsConfig(5).texts("train", tokenizer, 257))
    assert few == list(FactsConfig(9).texts("train", tokenizer, 257))[:5]
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert main(["data", "facts", "--output", str(folder), *options]) == 0
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    assert main(["data", "facts", "--output", str(folder), *options, "--seed", "1"]) == 2


def test_other_tokenizers_and_the_data_module(tmp_path):
    config = FactsConfig(documents=12, test_documents=4, tokenizer="bytes")
    data = TextDataModule(
        str(tmp_path / "a"), context_length=400, global_batch_size=2, micro_batch_size=2, num_workers=0, generate=config
    )
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.tokens.shape == (2, 400)
    assert json.loads((tmp_path / "a" / "tokenizer.json").read_text()) == {"tokenizer": "bytes"}
    assert data.manifest.splits["train"].bytes == data.manifest.splits["train"].tokens - 2 * 12


def test_mistakes(tmp_path):
    for wrong in ({"documents": 0}, {"test_documents": 0}, {"seed": -1}):
        with pytest.raises(UserError, match=f"facts: {next(iter(wrong))} takes a whole number"):
            FactsConfig(**wrong)
    with pytest.raises(UserError, match="32 tokens are too few for a document and a question"):
        generate_folder(FactsConfig(3, 1), tmp_path / "a", 31, progress=False)
