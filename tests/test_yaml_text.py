"""YAML as it is read and written here."""

import math
from enum import Enum

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mm_lightning.cli import main
from mm_lightning.errors import UserError
from mm_lightning.yaml_text import dump_yaml, load_yaml, locate, one_line, plain_values, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("3E5", 300000.0),
        ("-1.5e+2", -150.0),
        (".5e3", 500.0),
        ("1_000", 1000),
        ("1_000.5", 1000.5),
        ("1.", 1.0),
        ("+7", 7),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("on", True),
        ("No", False),
        ("~", None),
        ("", None),
        ("2025-06-01", "2025-06-01"),
        ("12:30", "12:30"),
        ("1e", "1e"),
        ("1__0", "1__0"),
        ("e5", "e5"),
        (".", "."),
        ("1.2.3", "1.2.3"),
        ('"1e-3"', "1e-3"),
        ("!!str 007", "007"),
        ("!!float 3", 3.0),
        ("=", "="),
        ("[1e-3, 3e-3]", [0.001, 0.003]),
        ("{on: 1, null: 2, 1e-3: 3, 2025-06-01: 4, 5: 6}", {"on": 1, "null": 2, 0.001: 3, "2025-06-01": 4, 5: 6}),
        ("a: &x {k: 1}\nb: {<<: *x, l: 2}\nc: *x", {"a": {"k": 1}, "b": {"k": 1, "l": 2}, "c": {"k": 1}}),
        # an anchor whose own mapping merges another, and has a key of it
        ("p: &a {k: 1}\nq:\n  r: &b {<<: *a, k: 2}\ns: {<<: *b}", {"p": {"k": 1}, "q": {"r": {"k": 2}}, "s": {"k": 2}}),
    ],
)
def test_what_values_are(text, value):
    text = f"- {text}" if "\n" not in text else text
    expected = [value] if text.startswith("- ") else value
    found = load_yaml(text, "x")
    assert found == expected
    assert repr(found) == repr(expected), "of the same types"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: !!binary aGk=", ["line 2", "!!binary"]),
        ("a: !!set {x, y}", ["line 1", "!!set"]),
        ("a: !!timestamp 2025-06-01", ["line 1", "!!timestamp"]),
        ("a: !!python/object/apply:os.getcwd []", ["line 1", "python"]),
        ("!mine k: 1", ["line 1", "!mine"]),
        ("? [a, b]\n: 1", ["line 1", "a key must be"]),
        ("a: 1\na: 2", ["line 2", "a comes twice"]),
        ("1e-3: 1\n0.001: 2", ["line 2", "0.001 comes twice"]),
        ("a: &a [*a]", ["line 1", "*a stands inside itself"]),
        ("a: &a {b: [*a]}", ["line 1", "*a stands inside itself"]),
        ("a: 1\n---\nb: 2", ["line 2", "another document"]),
        ("a: [1\nb: 2", ["line 2"]),
        ("a: 1\n\tb: 2", ["line 2", "\\t"]),
        ("a: \x00", ["line 1"]),
        ("a:\n  b: !!int x", ["line 2", "x is no number"]),
        ("a: !!bool perhaps", ["line 1", "neither true nor false"]),
        ("a: " + "9" * 5000, ["line 1", "no number that can be read"]),
        ("[" * 3000, ["too deep"]),
        ("a: *nowhere", ["line 1", "nowhere"]),
    ],
)
def test_what_is_no_plain_value_is_refused_with_its_line(text, words):
    with pytest.raises(UserError) as raised:
        load_yaml(text, "mine.yaml")
    message = str(raised.value)
    assert message.startswith("mine.yaml")
    assert all(word in message for word in words), message


def test_files(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfrun: 1\n")
    assert read_yaml(path) == {"run": 1}  # after a byte order mark too
    path.write_bytes(b"run: 1\nb: \xff\n")
    with pytest.raises(UserError, match=r"a\.yaml: not UTF-8, .*, line 2"):
        read_yaml(path)
    path.write_text("")
    assert read_yaml(path) is None
    with pytest.raises(UserError, match="is a folder"):
        read_yaml(tmp_path)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
scalars |= st.text(st.characters(exclude_categories=["Cs"])) | st.from_regex(r"[-+0-9.eExo_:~on ]{0,8}", fullmatch=True)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text("abe1_.-on~=", min_size=1), inner)
)


@given(values)
def test_what_is_written_is_read_back(value):
    assert load_yaml(dump_yaml({"key": value}), "x") == {"key": value}
    assert load_yaml(f"key: {one_line(value)}", "x") == {"key": value}


def test_texts_that_other_readers_take_for_something_else_are_quoted():
    texts = ["1e-3", "2025-06-01", "12:30", "on", "007", "0b1", "null", "="]
    assert yaml.safe_load(dump_yaml(texts)) == texts


def test_where_a_value_stands(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("model.network: {dim: 1}\ntrainer:\n  callbacks:\n  - {prompt: a}\n  - prompt: 007\n  - 8\n")
    assert locate(path, ["model", "network", "dim"]) == (1, "1")
    assert locate(path, ["trainer", "callbacks", "prompt"]) == (5, "007")
    assert locate(path, ["trainer", "callbacks", "prompt"], "a") == (4, "a")
    assert locate(path, ["trainer", "callbacks"], "8") == (6, "8")
    assert locate(path, ["model", "dim"]) == (1, "")


def test_options_are_read_alike(tmp_path, capsys):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("base: none.yaml\naxes: {model.learning_rate: [1, 2]}")
    settings = '{"data.path": "2025-06-01", "x.y": [010, 12:30]}'
    assert main(["sweep", str(sweep), "--dry_run", "--settings", settings]) == 2
    assert "none.yaml does not exist" in capsys.readouterr().err
    assert main(["sweep", str(sweep), "--settings", "!!binary aGk="]) == 2
    assert "sweep: --settings" in capsys.readouterr().err


class Unit(Enum):
    STEP = "step"


def test_plain_values_are_those_that_a_file_would_give():
    values = {"a": (1, 2.5), "b": [{"c": Unit.STEP}, None], "d": "on", "e": 1e-05, "f": float("inf"), "g": {"h": ()}}
    assert plain_values(values) == load_yaml(dump_yaml(values), "x")
