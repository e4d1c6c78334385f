"""Prompts byte for byte, and which demonstrations they show."""

from collections import Counter

import pytest
from color_task import WORDS, colours

from mm_lightning.data.tokenizer_training import train_tokenizer
from mm_lightning.errors import UserError
from mm_lightning.evaluation.in_context.datasets import READERS, Dataset, Example, relation
from mm_lightning.evaluation.in_context.prompts import STRATEGIES, Style, draw_shots, encode_after

BANKING = (
    "Given a customer service query, please predict the intent of the query. The predict answer must come from the "
    "demonstration examples with the exact format. The examples are as follows:"
)


@pytest.fixture
def banking(tmp_path):
    (tmp_path / "train.csv").write_text("text,category\nWhere is it?,card_arrival\nToo much!,extra_charge\n")
    (tmp_path / "test.csv").write_text("text,category\nWhen?,card_arrival\n")
    return READERS["banking77"](tmp_path)


@pytest.mark.parametrize(
    ("labels", "names"), [("semantic", ["card_arrival", "extra_charge"]), ("anonymous", ["class_00", "class_01"])]
)
def test_banking77(banking, labels, names):
    style = Style(banking, labels, "newline")
    assert style.demonstrations(1, seed=0) + style.query(banking.test[0]) == (
        f"{BANKING}\n"
        "service query: Where is it?\n"
        f"intent category: {names[0]}\n"
        "service query: Too much!\n"
        f"intent category: {names[1]}\n"
        "service query: When?\n"
        "intent category:"
    )
    assert style.answers == [f" {name}\n" for name in names]


def test_spaces(banking):
    style = Style(banking, "semantic", "space")
    assert style.demonstrations(1, seed=0) + style.query(banking.test[0]) == (
        f"{BANKING} service query: Where is it? intent category: card_arrival service query: Too much! "
        "intent category: extra_charge service query: When? intent category:"
    )
    assert style.answers == [" card_arrival service", " extra_charge service"]


def test_goemotions(tmp_path):
    (tmp_path / "labels.txt").write_text("joy\nfear\n")
    (tmp_path / "train.tsv").write_text("Boo\t1\tx\nYes\t0\ty\n")
    (tmp_path / "test.tsv").write_text("Oh\t1\tz\n")
    found = READERS["goemotions"](tmp_path)
    style = Style(found, "semantic", "newline")
    assert style.demonstrations(1, seed=0) + style.query(found.test[0]) == (
        "Given a comment, please predict the emotion category of this comment. The predict answer must come from the "
        "demonstration examples with the exact format. The examples are as follows:\n"
        "comment: Yes\nemotion category: joy\ncomment: Boo\nemotion category: fear\ncomment: Oh\nemotion category:"
    )


def test_relations():
    instruction = (
        "Given a sentence and a pair of subject and object entities within the sentence, please predict the relation "
        "between the given entities. The predict answer must come from the demonstration examples with the exact "
        "format. The examples are as follows:"
    )
    train = (relation("Ann leads Bo .", "Ann", "Bo", "per:title"), relation("Bo is old .", "Bo", "old", "org:founded"))
    found = Dataset("tacred", instruction, "sentence:", ("per:title", "org:founded"), train, train[:1])
    style = Style(found, "semantic", "newline")
    assert style.demonstrations(1, seed=0) + style.query(found.test[0]) == (
        f"{instruction}\n"
        "sentence: Ann leads Bo .\nthe relation between Ann and Bo is: per:title\n"
        "sentence: Bo is old .\nthe relation between Bo and old is: org:founded\n"
        "sentence: Ann leads Bo .\nthe relation between Ann and Bo is:"
    )


def test_the_instructions_of_the_readers(data):
    assert READERS["banking77"](data / "banking77").instruction == BANKING
    assert READERS["semeval2010_task8"](data / "semeval2010_task8").instruction.startswith(
        "Given a sentence and a pair of subject and object entities within the sentence, please predict the relation "
        "between the given entities. The predict answer must come"
    )


def test_a_shot_is_one_example_of_every_class():
    shots = draw_shots(colours(), 3, seed=1)
    assert [[e.label for e in shot] for shot in shots] == [list(WORDS)] * 3
    assert Counter(e.question for shot in shots for e in shot) == Counter(e.question for e in colours().train)
    assert draw_shots(colours(), 2, seed=1) == shots[:2]
    assert any(draw_shots(colours(), 3, seed) != shots for seed in range(5))


def test_shuffling_stays_within_a_shot():
    plain = Style(colours(), "semantic", "newline").demonstrations(3, 0).strip().split("\n")[1:]
    orders = set()
    for seed in range(6):
        mixed = Style(colours(), "semantic", "newline-shuffled").demonstrations(3, seed).strip().split("\n")[1:]
        for lines in (mixed[at : at + 6] for at in (0, 6, 12)):
            assert sorted(lines[1::2]) == sorted(plain[1:6:2])
            orders.add(tuple(lines[1::2]))
    assert len(orders) > 1
    fewer = Style(colours(), "semantic", "newline-shuffled").demonstrations(2, 3)
    assert Style(colours(), "semantic", "newline-shuffled").demonstrations(3, 3).startswith(fewer)


def test_too_few_examples_of_a_class():
    with pytest.raises(UserError, match="colours: class 'red' has 3 examples to show, 4 shots need 4"):
        draw_shots(colours(), 4, seed=0)


def test_hundreds_of_classes_have_wider_numbers():
    labels = tuple(f"l{n}" for n in range(101))
    train = tuple(Example(f"q {n}", "a:", f"l{n}") for n in range(101))
    names = Style(Dataset("many", "", "q", labels, train, train), "anonymous", "newline").names
    assert (names["l7"], names["l100"]) == ("class_007", "class_100")


def test_a_label_that_holds_the_terminator_gets_a_longer_one():
    train = (Example("comment: a", "kind:", "good comment"), Example("comment: b", "kind:", "good"))
    found = Dataset("kinds", "Say.", "comment:", ("good comment", "good"), train, train)
    assert Style(found, "semantic", "space").terminator == " comment:"
    assert Style(found, "anonymous", "space").terminator == " comment"


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    texts = [Style(colours(), "semantic", strategy).demonstrations(3, 0) for strategy in STRATEGIES]
    return train_tokenizer(texts, 330, tmp_path_factory.mktemp("bpe") / "tokenizer.json", progress=False)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("labels", ["semantic", "anonymous"])
def test_segments_are_encoded_as_the_whole_is(bpe, tokenizer, strategy, labels):
    data = colours((("wine?!", "red"), ("42 (!)", "blue"), ("  spaced ", "blue"), ("wine :)", "red")))
    style = Style(data, labels, strategy)
    before = style.demonstrations(3, 0)
    for encoder in (bpe, tokenizer):
        for example in data.test:
            query = style.query(example)
            segments = encoder.encode(before) + encode_after(encoder, before[-64:], [query])[0]
            for answer, ids in zip(style.answers, encode_after(encoder, query[-64:], style.answers), strict=True):
                assert segments + ids == encoder.encode(before + query + answer)


def test_segments_of_real_data(data, bpe):
    found = READERS["semeval2010_task8"](data / "semeval2010_task8")
    for strategy in STRATEGIES:
        style = Style(found, "semantic", strategy)
        before = style.demonstrations(1, 0)
        queries = [style.query(example) for example in found.test[:50]]
        head = bpe.encode(before)
        assert [head + ids for ids in encode_after(bpe, before[-64:], queries)] == bpe.encode_batch(
            [before + query for query in queries]
        )


class Joining:
    """A tokenizer that joins a line end with what follows."""

    name = "joining"

    def encode(self, text):
        return self.encode_batch([text])[0]

    def encode_batch(self, texts):
        return [[len(part) for part in text.split("|")] for text in texts]


def test_a_tokenizer_that_joins_segments_is_refused():
    assert encode_after(Joining(), "ab", ["|cd"]) == [[2]]
    with pytest.raises(UserError, match="tokenizer joining joins 'ab' and 'cd' in one token"):
        encode_after(Joining(), "ab", ["cd"])
