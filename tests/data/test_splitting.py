"""Which text is for validation."""

import random
from collections import Counter

import pytest
from corpus_samples import make_texts, write_lines

from mm_lightning.data import prepare as room
from mm_lightning.data import splitting
from mm_lightning.data.prepare import prepare, training_texts
from mm_lightning.data.prepare_config import PrepareConfig
from mm_lightning.data.splitting import DocumentSplit, fraction_of, plan_split
from mm_lightning.errors import UserError

DRAW = random.Random(2)
LETTERS = bytes(b"abcdefg \n"[n % 9] for n in range(256))
BOOKS = [f"book {n}\n" + DRAW.randbytes(100_000).translate(LETTERS).decode() for n in range(12)]
NOTES = [f"note {n} " + "x" * DRAW.randint(10, 90) for n in range(40)]


def sides(split, texts):
    """The parts for training and for validation."""
    parts = [part for text in texts for part in split.parts(text)]
    return [text for which, text in parts if not which], [text for which, text in parts if which]


def size(texts):
    return sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("texts", [BOOKS, BOOKS + NOTES, BOOKS[:1], BOOKS + BOOKS[:3], [*BOOKS, "字" * 100_000]])
@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.3, 0.5, 0.9])
def test_the_share_is_of_the_text_however_many_documents(texts, fraction):
    split, _ = plan_split(texts, fraction)
    training, validation = sides(split, texts)
    assert Counter("".join(training + validation)) == Counter("".join(texts))
    target = max(fraction * size(texts), 1 << 14)
    assert target / 2 <= size(validation) <= 2 * target
    assert (size(texts) - target) / 2 <= size(training) <= 2 * (size(texts) - target)
    assert sum(len(split.parts(text)) > 1 for text in set(texts)) <= 1  # documents that are cut


def test_a_document_is_cut_between_lines_and_only_where_needed():
    split, said = plan_split(BOOKS, 0.01)
    training, validation = sides(split, BOOKS)
    assert len(training) == 12
    assert len(validation) == 1
    assert said.startswith(
        f"validation: 16,384 of {size(BOOKS):,} bytes of text (1.37%), 0 of 12 documents and the end"
    )
    (book,) = (book for book in BOOKS if book.endswith(validation[0]))
    assert book[: -len(validation[0])].endswith("\n")
    many = make_texts(2000)
    split, said = plan_split(many, 0.1)
    assert split == DocumentSplit(0.1)
    chosen = [text for text in many if fraction_of(text) < 0.1]
    assert sides(split, many)[1] == chosen
    assert f"{size(chosen):,} of {size(many):,} bytes" in said
    assert f"{len(chosen)} of 2,000 documents, chosen" in said


def test_of_many_documents_only_the_first_are_read(monkeypatch):
    monkeypatch.setattr(splitting, "_ENOUGH", 50_000)
    read = []
    texts = make_texts(5000)
    split, said = plan_split((read.append(text) or text for text in texts), 0.1)
    assert split == DocumentSplit(0.1)
    assert 50_000 <= size(read) < 60_000
    assert "about" in said
    split, _ = plan_split(iter(BOOKS), 0.01)  # large ones are, until the share can be told
    assert split.cut


def test_what_it_will_be_is_said_before_anything_is_tokenized(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(room, "run_units", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    source = write_lines(tmp_path / "in.jsonl", BOOKS)
    config = PrepareConfig([source], validation_fraction=0.05, workers=1)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, tmp_path / "out", progress=False)
    assert "validation: 60," in capsys.readouterr().err
    kept = DocumentSplit.load(tmp_path / "out" / ".unfinished" / "split.json")
    assert kept.cut
    monkeypatch.undo()
    made = prepare(config, tmp_path / "out", progress=False)
    assert "validation: 60," not in capsys.readouterr().err  # it goes on with what was said
    assert made.splits["validation"].bytes == pytest.approx(0.05 * size(BOOKS), rel=0.1)
    assert made.splits["train"].bytes + made.splits["validation"].bytes == size(BOOKS)
    assert (made.splits["train"].documents, made.splits["validation"].documents) == (12, 1)


def test_a_preparation_that_was_begun_before_goes_on_by_its_rule(tmp_path, monkeypatch):
    texts = BOOKS[:4] + NOTES
    source = write_lines(tmp_path / "in.jsonl", texts)
    config = PrepareConfig([source], validation_fraction=0.1, workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(room, "run_units", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(config, tmp_path / "out", progress=False)
    (tmp_path / "out" / ".unfinished" / "split.json").unlink()  # as it was
    made = prepare(config, tmp_path / "out", progress=False)
    by_hash = [text for text in texts if fraction_of(text) < 0.1]
    assert made.splits["validation"].documents == len(by_hash)
    assert made.splits["validation"].bytes == size(by_hash)


def test_a_split_that_cannot_be_made_leaves_nothing_behind(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", ["1"])
    with pytest.raises(UserError, match="too little for a validation split"):
        prepare(PrepareConfig([source], workers=1), tmp_path / "out", progress=False)
    made = prepare(PrepareConfig([source], validation_fraction=0, workers=1), tmp_path / "out", progress=False)
    assert made.splits["train"].documents == 1


def test_a_tokenizer_is_trained_on_stretches_of_long_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_STRETCH", 1000)
    source = write_lines(tmp_path / "in.jsonl", BOOKS[:1])
    config = PrepareConfig([source], tokenizer="train", tokenizer_bytes=20_000)
    kept = list(training_texts(config))
    assert 10_000 < size(kept) < 40_000
    split = DocumentSplit(fraction_of(BOOKS[0]), 50_000)
    assert all(BOOKS[0].index(text) < size(BOOKS) - 50_000 for text in training_texts(config, split=split))
