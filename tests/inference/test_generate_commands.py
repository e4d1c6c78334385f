"""`mm generate`, `mm chat` and `mm remember`, with a network in the place of a checkpoint's."""

import gzip
import io
import json
import shlex

import pytest
import zstandard
from byte_networks import build
from reciting_network import Recites

from mm_lightning.cli import main
from mm_lightning.inference.generate_commands import generate_line, read_prompt_file
from mm_lightning.inference.sampling import Sampling


@pytest.fixture
def load(monkeypatch):
    """Chooses the network that every checkpoint holds."""

    def load(network, tokenizer):
        monkeypatch.setattr("mm_lightning.checkpoint.load_network", lambda *_: (network, tokenizer))

    return load


def run(*args):
    return main([args[0], "--checkpoint", "x", "--device", "cpu", *map(str, args[1:])])


def test_one_prompt(load, tokenizer, capsys):
    load(Recites("one two\nthree"), tokenizer)
    assert run("generate", "--prompt", "on", "--stop", r"\nthree") == 0
    assert capsys.readouterr().out == "one two\n"
    assert run("generate", "--prompt", "on", "--max_new_tokens", 2, "--samples", 2) == 0
    assert capsys.readouterr().out == "--- 1 of 2\none \n--- 2 of 2\none \n"


def test_a_suggested_command_asks_for_the_same(load, tokenizer, capsys, monkeypatch):
    load(None, tokenizer)
    asked = []
    monkeypatch.setattr(
        "mm_lightning.inference.generate_commands._readers", lambda _, __, prompts, *___: [(0, prompts, None)]
    )
    monkeypatch.setattr(
        "mm_lightning.inference.generate.write", lambda _, __, *settings: asked.append(settings) or iter(())
    )
    sampling = Sampling(temperature=0.7, top_k=50, min_p=0.1, seed=1)
    for prompt in ("", "    def f(self", "a\n\tb\\n\\\\t 'c' $d", "--x y", "-", "# A title\n", "null"):
        line = generate_line("x", prompt, sampling, 60)
        assert "\n" not in line
        program, *words = shlex.split(line)
        assert program == "mm"
        assert main([*words, "--device", "cpu"]) == 0
        assert capsys.readouterr().out == f"{prompt}\n"
        assert asked.pop()[:2] == (sampling, 60)
    assert generate_line("a b", "", Sampling(), 200) == "mm generate --checkpoint 'a b'"


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_file_of_prompts(load, tokenizer, capsys, tmp_path, kind):
    load(Recites("abcdefgh"), tokenizer)
    prompts, output = tmp_path / f"p.{kind}", tmp_path / "new" / "o.jsonl"
    lines = {
        "txt": "abc\n\na\nabcde\n",
        "jsonl": '{"prompt": "abc", "id": 1}\n\n{"prompt": "a"}\n{"prompt": "abcde"}\n',
    }
    prompts.write_text("\ufeff" + lines[kind], encoding="utf-8")  # a byte order mark, as editors put it
    settings = ["--prompts", prompts, "--max_new_tokens", 4, "--batch_size", 2]
    assert run("generate", *settings, "--output", output) == 0
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert found == [{"prompt": p, "text": t} for p, t in (("abc", "defg"), ("a", "bcde"), ("abcde", "fgh"))]
    assert capsys.readouterr().out == ""
    assert run("generate", *settings, "--output", output) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run("generate", *settings, "--samples", 2) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[1]) == {"prompt": "a", "texts": ["bcde", "bcde"]}


def test_batches_do_not_change_texts(load, network, tokenizer, capsys, tmp_path):
    load(network, tokenizer)
    prompts = tmp_path / "p.txt"
    prompts.write_text("one\nthe second\n3\n")
    settings = ["--prompts", prompts, "--max_new_tokens", 6, "--samples", 2, "--top_p", 0.9, "--seed", 3]
    outputs = []
    for size in (1, 2):
        assert run("generate", *settings, "--batch_size", size) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]


def test_a_document_is_remembered_and_asked(load, network, tokenizer, capsys, tmp_path, monkeypatch):
    load(network, tokenizer)
    text, memory, prompts = tmp_path / "a.txt", tmp_path / "a.memory", tmp_path / "p.txt"
    text.write_text("\ufeffwhat is to be remembered", encoding="utf-8")
    assert run("remember", "--text", text, "--output", memory) == 0
    assert "25 tokens" in capsys.readouterr().out
    settings = ["--max_new_tokens", 6, "--temperature", 0]
    assert run("generate", *settings, "--prompt", "what is to be remembered, and") == 0
    read = capsys.readouterr().out.removeprefix("what is to be remembered")
    assert run("generate", *settings, "--memory", memory, "--prompt", ", and") == 0
    assert capsys.readouterr().out == read
    prompts.write_text(", and\n or\n")
    assert run("generate", *settings, "--memory", memory, "--prompts", prompts, "--samples", 2) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == {"prompt": ", and", "texts": [read.removeprefix(", and").removesuffix("\n")] * 2}
    assert lines[1]["prompt"] == " or"
    monkeypatch.setattr("sys.stdin", io.StringIO("/stats\n, and\n"))
    assert run("chat", *settings, "--memory", memory) == 0
    out = capsys.readouterr().out
    assert out.startswith("25 tokens")
    assert out.split("MB\n")[1] == read.removeprefix(", and")


@pytest.mark.parametrize("name", ["p.JSONL", "p.json", "p.ndjson", "p.jsonl.gz", "p.jsonl.zst", "p.txt.gz"])
def test_prompts_are_told_by_the_suffixes_that_prepare_knows(tmp_path, name):
    text = "a\n\n b\n" if "txt" in name else '{"prompt": "\\ufeffa"}\n\n{"prompt": " b"}\n'
    compress = {"gz": gzip.compress, "zst": zstandard.compress}.get(name[-3:].strip("."), bytes)
    (tmp_path / name).write_bytes(compress(("\ufeff" + text).encode()))
    assert read_prompt_file(str(tmp_path / name)) == ["a", " b"]


def test_what_is_typed_from_a_file_begins_without_its_byte_order_mark(load, tokenizer, capsys, monkeypatch):
    load(Recites("abcdefgh"), tokenizer)
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeffabc\n/stats\n"))
    assert run("chat", "--max_new_tokens", 2) == 0
    assert "6 tokens" in capsys.readouterr().out  # of the beginning, what was typed and the answer


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"\x1f\x8b", "p.txt.gz", "cannot read"),
        (None, "p.txt", "there is no text file"),
        (b"", "p.txt", "holds no prompts"),
        (b"\n \n", "p.txt", "holds no prompts"),
        (b"\xff\xfe", "p.txt", "p.txt: not UTF-8, invalid start byte at byte 0, line 1"),
        (b'{"prompt": "a"}\n{"prompt": \n', "p.jsonl", "p.jsonl, row 2: not JSON: Expecting value at character 12"),
        (b'\n{"text": "a"}\n', "p.jsonl", 'p.jsonl, row 2 has no text under the key "prompt"'),
        (b"[1]\n", "p.jsonl", "row 1 has no text"),
    ],
)
def test_prompt_files_that_cannot_be_read(capsys, tmp_path, content, name, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert run("generate", "--prompts", tmp_path / name) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_error_begins_on_a_line_of_its_own(load, tokenizer, capsys):
    load(Recites("one"), tokenizer)
    assert run("generate", "--prompt", "o", "--memory", "nowhere") == 2
    assert capsys.readouterr().out == ""
    broken = build("v2").requires_grad_(False)
    for parameter in broken.parameters():
        parameter.fill_(float("nan"))
    load(broken, tokenizer)
    assert run("generate", "--prompt", "o") == 2
    assert capsys.readouterr().out == "o\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("generate", "--prompt", "a", "--prompts", "b"), "give --prompt or --prompts"),
        (("generate", "--samples", "0"), "samples takes a whole number of at least 1"),
        (("generate", "--top_p", "2"), "top_p takes a number above 0"),
        (("generate", "--temprature", "2"), "did you mean --temperature?"),
        (("generate", "--stop", ""), "not empty"),
        (("chat", "--user", "User:"), "needs a {}"),
        (("chat", "--max_new_tokens", "0"), "max_new_tokens takes a whole number of at least 1"),
        (("remember", "--text", "nowhere.txt", "--output", "a"), "there is no text file nowhere.txt"),
    ],
)
def test_mistakes(capsys, args, message):
    assert run(*args) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_long_memory_read_by_clusters(load, tokenizer, network, capsys, tmp_path, monkeypatch):
    """By every command, from a prompt and from a file, also where a document is written on several times."""
    from mm_lightning.memory.sublinear.key_clusters import KeyClusters

    read, by_clusters = [], KeyClusters.read
    monkeypatch.setattr(KeyClusters, "read", lambda *a: read.append(a[0].settings.budget) or by_clusters(*a))
    load(network, tokenizer)
    text, memory = "so long that blocks are worth it " * 140, tmp_path / "m"
    (tmp_path / "t.txt").write_text(text)
    assert run("remember", "--text", tmp_path / "t.txt", "--output", memory) == 0
    for settings in (["--prompt", text], ["--memory", memory, "--prompt", "on", "--samples", 2]):
        for budget in ([], ["--read_budget", 1000]):
            read.clear()
            assert run("generate", *settings, *budget, "--max_new_tokens", 3) == 0
            assert set(read) == set(budget[1:])
    read.clear()
    monkeypatch.setattr("sys.stdin", io.StringIO(f"/load {memory}\non\n"))
    assert run("chat", "--read_budget", 1000, "--max_new_tokens", 3) == 0
    assert set(read) == {1000}
    assert run("generate", "--read_budget", 3) == 2
    assert "read_budget takes a whole number of at least 16" in capsys.readouterr().err
    load(build("transformer"), tokenizer)
    for command in ("generate", "chat"):
        assert run(command, "--read_budget", 1000) == 2
        assert "this network has none" in capsys.readouterr().err
