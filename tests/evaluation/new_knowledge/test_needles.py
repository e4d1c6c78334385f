import re
from collections import Counter
from random import Random

import pytest
from asked import DATA, Answering, needs_data, run

from mm_lightning.errors import UserError
from mm_lightning.evaluation.new_knowledge import haystack, needles
from mm_lightning.evaluation.new_knowledge.haystack import NOISE, needle, needle_prompt
from mm_lightning.evaluation.new_knowledge.words import ADJECTIVES, NOUNS
from mm_lightning.evaluation.registry import TASKS, find_task

ONE = """\
A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the number \
afterwards.
The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.
One of the special magic numbers for calm-river is: 1234567.
What is the special magic number for calm-river mentioned in the provided text? The special magic number for \
calm-river mentioned in the provided text is"""

FOUR = """\
Some special magic uuids are hidden within the following text. Make sure to memorize it. I will quiz you about the \
uuids afterwards.
HAY
What are all the special magic uuids for a, b, and c mentioned in the provided text? The special magic uuids for a, b, \
and c mentioned in the provided text are"""

NUMBER, UUID = r"[1-9]\d{6}", r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
SENTENCE = re.compile(rf"One of the special magic (numbers|uuids) for ([\w-]+) is: ({NUMBER}|{UUID})\.")
ALL = [find_task(name) for name in TASKS if name.startswith("niah")]


@pytest.fixture(scope="module")
def essays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("essays")
    for book in range(3):
        (folder / f"{book}.txt").write_text("\n".join(f"Sentence {n} of book {book} is short." for n in range(300)))
    return str(folder)


def copying(prompt):
    """The values of all keys that are asked for."""
    asked = re.search(r"What (?:is|are all) the special magic \w+ for (.+?) mentioned", prompt)[1]
    keys = re.split(r", and |, ", asked)
    return " " + ", ".join(value for _, key, value in SENTENCE.findall(prompt) if key in keys)


def test_the_prompts_are_the_published_ones():
    hay = NOISE + "\n" + needle("numbers", "calm-river", "1234567")
    assert needle_prompt(hay, "numbers", ["calm-river"], 1) == ONE
    assert needle_prompt("HAY", "uuids", ["a", "b", "c"], 3) == FOUR


def test_all_eight_are_known():
    numbers, uuids = NUMBER, UUID
    assert {task.name: task.kind.haystack for task in ALL} == {
        "niah_single_1": "noise", "niah_single_2": "essay", "niah_single_3": "essay", "niah_multikey_1": "essay",
        "niah_multikey_2": "needle", "niah_multikey_3": "needle", "niah_multivalue": "essay",
        "niah_multiquery": "essay",
    }  # fmt: skip
    assert re.fullmatch(numbers, "1234567")
    assert not re.fullmatch(uuids, "1234567")


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_each_is_built_as_defined(task, essays):
    chosen = task(contexts=[3072], limit=20, essays=essays)
    records, rows = run(chosen, copying)
    assert rows[3072, None, "accuracy"].value == 1
    again, _ = run(task(contexts=[3072], limit=20, essays=essays), copying)
    assert again == records
    for record in records:
        used = 1 + len(record["prompt"].encode()) + 128
        assert record["tokens"] == used
        assert 0.9 * 3072 <= used <= 3072
        context = record["prompt"].split("\n", 1)[1].rsplit("\n", 1)[0]
        found = SENTENCE.findall(context)
        kinds, keys, values = zip(*found, strict=True)
        assert set(kinds) == {task.kind.value}
        assert all(re.fullmatch(UUID if task.kind.value == "uuids" else NUMBER, value) for value in values)
        assert len(set(keys)) == len(found) // task.kind.values
        if task.kind.key == "words":
            assert all(a in ADJECTIVES and b in NOUNS for a, b in (key.split("-") for key in keys))
        assert len(record["references"]) == task.kind.values * task.kind.queries
        assert len(record["question"]) == task.kind.queries
        if task.kind.haystack == "needle":
            assert context.count("\n") == len(found) - 1
        else:
            assert len(found) == task.kind.keys * task.kind.values
            assert (NOISE in context) == (task.kind.haystack == "noise")
        # the depth that is recorded is where the needle stands
        for gold in record["gold"]:
            place = context.index(gold["references"][0]) / len(context)
            assert gold["depth"] == pytest.approx(place, abs=0.09)


def test_the_score_is_the_share_of_the_values_that_were_found(essays):
    task = needles.MultiValue(contexts=[2048], limit=8, essays=essays)
    records, rows = run(task, lambda prompt: ", ".join(copying(prompt).split(", ")[:3]))
    assert [record["scores"]["accuracy"] for record in records] == [0.75] * 8
    cells = [row for (_, depth, _), row in rows.items() if depth]
    assert sum(row.count for row in cells) == 32
    assert sum(row.value * row.count for row in cells) == pytest.approx(24)
    _, rows = run(task, lambda prompt: "1234567")
    assert rows[2048, None, "accuracy"].value == 0


def test_needles_stand_at_the_forty_published_depths(essays):
    task = needles.Single2(contexts=[8192], limit=80, essays=essays)
    records, _ = run(task, copying)
    points = [round(100 * n / 39) for n in range(40)]
    assert points[:4] == [0, 3, 5, 8]
    nearest = Counter(min(points, key=lambda point: abs(point - 100 * record["depth"])) for record in records)
    assert set(nearest) == set(points)
    assert max(nearest.values()) <= 4


def test_every_needle_stands_where_it_is_said_to(essays):
    for record in run(needles.MultiQuery(contexts=[3072], limit=5, essays=essays), copying)[0]:
        pieces = re.findall(r"(Sentence \d+ of book \d|special magic numbers for [\w-]+ is)", record["prompt"])
        hay = sum(piece.startswith("Sentence") for piece in pieces)
        before = [sum(p.startswith("Sentence") for p in pieces[:n]) for n, p in enumerate(pieces) if "magic" in p]
        assert [x / hay for x in before] == pytest.approx(sorted(gold["depth"] for gold in record["gold"]), abs=1e-5)


def test_no_key_stands_twice(monkeypatch):
    monkeypatch.setattr(haystack, "ADJECTIVES", ["calm", "wild"])
    monkeypatch.setattr(haystack, "NOUNS", ["river", "hill"])
    source = haystack.NeedleSource(haystack.NeedleKind("noise"), None, 0, 0, None)
    taken, random = set(), Random(0)
    assert len({source._key(random, taken) for _ in range(4)}) == 4
    with pytest.raises(UserError, match="only 4 different keys"):
        source._key(Random(0), taken)


def test_prose_begins_somewhere_else_each_time(essays):
    records, _ = run(needles.Single2(contexts=[1024], limit=12, essays=essays), copying)
    assert len({record["prompt"].split("\n")[1][:40] for record in records}) >= 10


def test_a_length_that_is_too_short(essays):
    with pytest.raises(UserError, match="256 tokens are too few for needles and an answer of 128"):
        needles.MultiQuery(contexts=[256], essays=essays).items(Answering(copying))


def test_missing_prose(tmp_path):
    with pytest.raises(UserError, match=r"no file or folder .*text/novels: put books"):
        needles.Single2(data_dir=str(tmp_path)).items(Answering(copying))
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"a\.txt: not UTF-8, .* byte 3, line 1"):
        needles.Single2(essays=str(tmp_path)).items(Answering(copying))
    (tmp_path / "a.txt").write_text("One sentence. Another.")
    (tmp_path / "b.txt").write_text("A third.")
    hashes = [needles.Single2(essays=str(tmp_path / name)).settings()["data_hash"] for name in ("", "*.txt", "a.txt")]
    assert hashes[0] == hashes[1] != hashes[2]
    # noise needs no data
    assert needles.Single1(data_dir=str(tmp_path), limit=3).items(Answering(copying))


def test_words():
    assert len(set(ADJECTIVES)) == len(ADJECTIVES)
    assert len(set(NOUNS)) == len(NOUNS)
    assert all(re.fullmatch("[a-z]+", word) for word in ADJECTIVES + NOUNS)
    # a context of 128k tokens of needles has fewer than 10,000 of them
    assert len(ADJECTIVES) * len(NOUNS) > 50_000


@needs_data
def test_on_real_prose():
    folder = str(DATA / "text" / "tinyshakespeare")
    records, rows = run(needles.MultiKey1(contexts=[4096], limit=5, essays=folder), copying)
    assert rows[4096, None, "accuracy"].value == 1
    assert all(record["tokens"] >= 0.9 * 4096 for record in records)
