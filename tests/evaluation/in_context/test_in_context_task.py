"""Tasks from items to rows, and networks that must get certain scores."""

import contextlib
import json
from pathlib import Path

import pytest
import torch
from byte_networks import CONFIGS, build
from color_task import Colours, Scripted, answering, colours

from mm_lightning.cli import main
from mm_lightning.errors import UserError
from mm_lightning.evaluation.in_context.answer import ANSWER_TOKENS
from mm_lightning.evaluation.in_context.in_context_task import Classification, InContext
from mm_lightning.evaluation.in_context.prompts import STRATEGIES, Style
from mm_lightning.evaluation.model import Model
from mm_lightning.evaluation.registry import GROUPS, find_task

TRUTH = {example.question.removeprefix("thing: "): example.label for example in colours().test}


def ask(task, network, tokenizer, batch_size=8):
    """The records of a task in the order of its items."""
    model = Model(network, tokenizer, batch_size=batch_size)
    items = task.items(model)
    records = {record["key"]: record for record in task.ask(model, items)}
    assert records.keys() == {item.key for item in items}
    return [records[item.key] for item in items]


def values(rows):
    return {(*row.group.values(), row.metric): row.value for row in rows}


@pytest.mark.parametrize(
    ("labels", "names"), [("semantic", ["red", "redish", "blue"]), ("anonymous", ["class_00", "class_01", "class_02"])]
)
def test_a_perfect_network_is_always_right(tokenizer, labels, names):
    name_of = dict(zip(["red", "redish", "blue"], names, strict=True))
    task = Colours(shots=[1, 3], labels=[labels], strategies=["newline", "newline-shuffled"], demonstration_seeds=2)
    records = ask(task, Scripted(answering(lambda word: name_of[TRUTH.get(word, "red")])), tokenizer)
    assert len(records) == 2 * 2 * 2 * 4
    assert {record["answer"] for record in records} == {f" {name}" for name in names}
    assert all(all(record["scores"].values()) for record in records)
    rows = [row for row in task.rows(records) if row.unit == "share"]
    assert {row.value for row in rows} == {1.0}
    assert {row.stderr for row in rows} == {0.0}
    assert {row.group["strategy"] for row in rows} == {"newline", "newline-shuffled", "best"}


def test_a_constant_network_gets_the_share_of_its_class(tokenizer):
    task = Colours(shots=[2], labels=["semantic"], strategies=["newline"], demonstration_seeds=3)
    found = values(task.rows(ask(task, Scripted(answering(lambda word: "blue")), tokenizer)))
    for way in ("greedy", "likelihood", "likelihood_by_length"):
        assert found["semantic", 2, "newline", way] == 0.5  # 2 of 4 questions
        assert found["semantic", 2, "newline", f"{way}_macro"] == pytest.approx(1 / 3)
    assert found["semantic", 2, "newline", "inside"] == 1


def test_answers_outside_the_labels(tokenizer):
    task = Colours(shots=[1], labels=["semantic"], strategies=["newline"], demonstration_seeds=1)
    records = ask(task, Scripted(answering(lambda word: "green" if word == "wine" else "bluefish")), tokenizer)
    found = values(task.rows(records))
    assert found["semantic", 1, "newline", "inside"] == found["semantic", 1, "newline", "greedy"] == 0
    # " blue" is followed by "f", not by the terminator, and yet it is nearest to what this network would say.
    assert [record["likely"] for record in records][1:] == ["blue"] * 3


@pytest.mark.parametrize("name", CONFIGS)
def test_batches_change_nothing(tokenizer, name):
    network = build(name)
    task = Colours(shots=[1, 2], labels=["semantic"], strategies=["space-shuffled"], demonstration_seeds=1)
    one, eight = (ask(task, network, tokenizer, size) for size in (1, 8))
    for a, b in zip(one, eight, strict=True):
        assert a.pop("log_likelihoods") == pytest.approx(b.pop("log_likelihoods"), abs=2e-5)
        assert a == b


def test_likelihoods_of_whole_prompts(tokenizer):
    """The scores of a record, from forward passes over everything that it stands for."""
    network = build("v2")
    task = Colours(shots=[2], strategies=["newline", "space"], demonstration_seeds=1, limit=2)
    before = {}
    for record in ask(task, network, tokenizer):
        before.setdefault(record["demonstrations"], record.get("before"))
        style = Style(colours(), record["group"]["labels"], record["group"]["strategy"])
        text = before[record["demonstrations"]] + record["prompt"]
        for answer, found in zip(style.answers, record["log_likelihoods"], strict=True):
            tokens = [256, *(text + answer).encode()]
            with torch.no_grad():
                logs = network(torch.tensor([tokens]))[0].log_softmax(-1)
            own = range(len(tokens) - len(answer), len(tokens))
            assert found == pytest.approx(sum(float(logs[n - 1, tokens[n]]) for n in own), abs=2e-5)
        names, by_token = list(style.names.values()), zip(record["log_likelihoods"], style.answers, strict=True)
        means = [found / len(answer) for found, answer in by_token]
        assert record["likely"] == names[record["log_likelihoods"].index(max(record["log_likelihoods"]))]
        assert record["likely_by_length"] == names[means.index(max(means))]


def test_forward_tokens(tokenizer):
    """Demonstrations once for all shots, then each question, each beginning of a label, and the greedy answer, once."""
    network = Scripted(answering(lambda word: "redish"))
    task = Colours(shots=[1, 2, 3], labels=["semantic"], strategies=["newline"], demonstration_seeds=2)
    ask(task, network, tokenizer, 1)
    style = Style(colours(), "semantic", "newline")
    read = sum(1 + len(style.demonstrations(3, seed)) for seed in range(2))
    beginnings = {answer[:n] for answer in style.answers for n in range(1, len(answer))}
    each = sum(len(style.query(example)) + len(beginnings) + len(" redish") for example in colours().test)
    assert network.tokens == read + 2 * 3 * each


def test_only_the_first_record_shows_the_demonstrations(tokenizer):
    task = Colours(shots=[1], demonstration_seeds=2)
    records = ask(task, Scripted(answering(lambda word: "red")), tokenizer)
    shown = [record for record in records if "before" in record]
    assert len(shown) == 2 * len(STRATEGIES) * 2
    assert all(record["demonstration_tokens"] == 1 + len(record["before"].encode()) for record in shown)


def test_part_of_the_items(tokenizer):
    """What another process or an interrupted run leaves gives the same records."""
    network = build("v2")
    task = Colours(shots=[1, 2], labels=["anonymous"], strategies=["newline"], demonstration_seeds=1)
    model = Model(network, tokenizer)
    items = task.items(model)
    whole = {record["key"]: record for record in task.ask(model, items)}
    part = list(task.ask(model, items[1::2]))
    assert len(part) == len(items) // 2
    for record in part:
        same = whole[record["key"]]
        assert record.pop("log_likelihoods") == pytest.approx(same.pop("log_likelihoods"), abs=2e-5)
        assert record == same


def test_long_greedy_answers_end(tokenizer):
    task = Colours(shots=[1], labels=["semantic"], strategies=["space"], demonstration_seeds=1, limit=1)
    (record,) = ask(task, Scripted(lambda text: "a"), tokenizer)
    assert record["answer"] == "a" * ANSWER_TOKENS


def test_questions_are_drawn_by_seed():
    task = Colours(limit=2)
    assert task.queries() == Colours(limit=2).queries()
    assert len(task.queries()) == 2
    assert Colours(limit=4).queries() == Colours(limit=None).queries() == [0, 1, 2, 3]
    assert {tuple(Colours(limit=2, seed=seed).queries()) for seed in range(20)} == {
        (a, b) for a in range(4) for b in range(a + 1, 4)
    }


def test_prompts_are_counted(tokenizer):
    task = Colours(shots=[1, 2], labels=["semantic"], strategies=["newline", "space"], demonstration_seeds=1)
    network = Scripted(answering(lambda word: "blue"))
    records = ask(task, network, tokenizer)
    rows = [row for row in task.rows(records) if row.metric == "longest prompt"]
    assert len(rows) == 2 * 2
    (row,) = [row for row in rows if row.group == {"labels": "semantic", "shots": 2, "strategy": "newline"}]
    style = Style(task.data, "semantic", "newline")
    longest = max(len(style.query(example)) for example in task.data.test)
    assert row.value == 1 + len(style.demonstrations(2, 0)) + longest  # a token a byte
    assert row.unit == "count"


def test_reading_of_demonstrations_is_reported(tokenizer):
    model, read = Model(build("v2"), tokenizer), []

    @contextlib.contextmanager
    def reading(tokens):
        read.append([tokens])
        yield read[-1].append

    model.reading = reading
    task = Colours(shots=[1, 2], labels=["semantic"], strategies=["newline"], demonstration_seeds=1)
    list(task.ask(model, task.items(model)))
    assert len(read) == 2
    assert all(tokens == sum(parts) for tokens, *parts in read)


def test_settings_make_the_task_again():
    task = Colours(data_dir="here", shots=[1])
    fields = {name: value for name, value in task.settings().items() if name != "version"}
    assert Colours(**fields).settings() == task.settings() == Colours(data_dir="there", shots=[1]).settings()
    with pytest.raises(UserError, match=r"colours: its hash is .*, not data_hash 0"):
        _ = Colours(data_hash="0").data


MISTAKES = [
    ({"shots": []}, "shots must name one or more values"),
    ({"shots": [2, 2]}, "each once"),
    ({"shots": [0]}, "shots takes a whole number of at least 1, got 0"),
    ({"labels": ["Semantic"]}, "labels: there is no 'Semantic', only semantic, anonymous"),
    ({"strategies": ["tab"]}, "strategies: there is no 'tab', only newline, newline-shuffled, space, space-shuffled"),
    ({"demonstration_seeds": 0}, "demonstration_seeds takes a whole number of at least 1"),
    ({"limit": 0}, "limit takes a whole number of at least 1"),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES)
def test_mistakes(given, message):
    with pytest.raises(UserError, match=message):
        InContext(**given)


def test_prompts_that_are_too_long(tokenizer):
    model = Model(Scripted(answering(str)), tokenizer)
    style = Style(colours(), "anonymous", "newline")
    lengths = [1 + len(style.demonstrations(n, 0)) + len(style.query(colours().test[3])) + 10 for n in (1, 2)]
    given = {"shots": [1, 2], "labels": ["anonymous"], "strategies": ["newline"], "demonstration_seeds": 1}
    Colours(**given, longest_prompt=lengths[1]).items(model)
    message = f"colours with 2 shots .anonymous labels, newline, seed 0.: a prompt has {lengths[1]} tokens, more than "
    with pytest.raises(UserError, match=f"{message}longest_prompt {lengths[1] - 1}: at most --shots 1 fits"):
        Colours(**given, longest_prompt=lengths[1] - 1).items(model)
    with pytest.raises(UserError, match="not even the fewest shots fit"):
        Colours(**given, longest_prompt=lengths[0] - 1).items(model)


def test_too_many_shots(tokenizer):
    with pytest.raises(UserError, match="class 'red' has 3 examples to show, 16 shots need 16 of each"):
        Colours().items(Model(Scripted(answering(str)), tokenizer))


def test_classification_needs_a_description():
    with pytest.raises(UserError, match=r"classification needs --dataset FILE\.yaml"):
        _ = Classification().data


def test_the_command(runs, tmp_path, monkeypatch):
    """A data set of five lines, two networks, tables; asked again, nothing is asked."""
    monkeypatch.chdir(tmp_path)
    Path("kinds.yaml").write_text(
        "name: kinds\ntrain: a.csv\ntest: a.csv\ncolumns: {text: question, label: kind}\n"
        'prompt: {instruction: "Tell its kind.", text: "question:", label: "kind:"}\n'
    )
    Path("a.csv").write_text("question,kind\nhow?,number\nwho?,person\n")
    given = "--tasks classification --dataset kinds.yaml --shots 1 --labels semantic --strategies newline space"
    command = ["evaluate", "--checkpoint", str(runs / "v2"), str(runs / "transformer"), *given.split()]
    for _ in range(2):
        assert main([*command, "--demonstration_seeds", "2"]) == 0
    found = json.loads(Path("results/v2-0-step1/classification-kinds/results.json").read_text())
    assert found["settings"]["dataset"] == "kinds"
    assert found["network"]["items"] == 2 * 2 * 2
    text = Path("results/report/report.md").read_text()
    assert "### classification-kinds" in text
    assert sum("exact match of greedy decoding" in line for line in text.splitlines() if line.startswith("| s")) == 4
    samples = Path("results/v2-0-step1/classification-kinds/samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in samples][:2] == ["semantic/newline/1/0/0", "semantic/newline/1/0/1"]


def test_every_task_has_a_name():
    for name in (*GROUPS["in_context"], *GROUPS["in_context_free"], "classification"):
        assert issubclass(find_task(name), InContext)
        assert find_task(name).name == name
