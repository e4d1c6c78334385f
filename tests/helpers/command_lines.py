"""Command lines of every command with nonsense in them, and what a command that ends on one must leave behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from mm_lightning.cli import COMMANDS, TRAINING, load, main
from mm_lightning.function_command import function_parser

NUMBERS = ["-1", "0", "1", "2", "1.5", "nan", ".nan", "inf", "-.inf", "1e308", "1" + "0" * 30, "-0", "1e3", "1_0", "0x"]
TRAPS = [
    *("yes", "~", "null", "[", "{", "}", "[]", "{}", "[[]]", "{a: b}", "[1, a, null]", "!!python/object:os.system {}"),
    *(
        "&a *a",
        "&a [*a]",
        "*a",
        "? a",
        "- a",
        "a: b: c",
        "|",
        ">",
        "%",
        "@x",
        "`x`",
        '"',
        "'",
        "'a",
        "#",
        "\t",
        "<<: 1",
    ),
    *("2025-06-01", "12:30", "!!binary aGk=", "!!set {a}", "{a: {b: {c: [1, {d: null}]}}}", "[" * 300, "{a: " * 200),
    *("true", "false", "None", "nan", "class_path: x", "{class_path: x}", "{class_path: os.system, init_args: {}}"),
]
TEXTS = ["", " ", "\n", "a\nb", "ü", "日本語", "\udcff", "a\udc80b", "x" * 5000, "\x1b[31m", "a\x00b", "-", "--", "---"]
PLACES = [
    *(
        "nowhere",
        "nowhere/else",
        "folder",
        "text.txt",
        "binary",
        "empty",
        "/dev/null/x",
        "text.txt/x",
        "loop",
        "~",
        "~x",
    ),
    *("run", "run/checkpoints", "checkpoint", "tiny.yaml", "data", "/", ".", "..", "unreadable", "closed", "page.json"),
    *(
        "pipe://x",
        "file:///nowhere",
        "s3://",
        "torn.ckpt",
        "latin.yaml",
        "sweep.yaml",
        "table.csv",
        "*.txt",
        "[",
        "~/x",
    ),
]
WORDS = ["--", "-x", "--nope", "--nope=1", "-1", "word", "", "--=", "--.", "--model.", "-", "--é", "--help=1", "@file"]


@dataclass
class Ended:
    """How a command line ended: what is wrong with that, in words, is empty for a good one."""

    args: list[str]
    status: Any
    out: str
    err: str
    wrong: str


class TooLong(BaseException):
    """A command took more time than it is given."""


def options_of(command: str) -> list[str]:
    """Return the options of a command as its parser has them."""
    if command in TRAINING or command in ("cost", "launch"):
        own = {
            "cost": ["context", "json"],
            "launch": ["nodes", "gpus", "executor", "sbatch", "gpu_memory", "node_rank", "address", "port", "dry_run"],
        }
        return [*own.get(command, []), *_training_options(command if command in TRAINING else "fit")]
    parser = function_parser(command, load(COMMANDS[command][0]))
    return [action.dest for action in parser._actions if action.option_strings and action.dest != "help"]


def _training_options(command: str) -> list[str]:
    from mm_lightning.training.cli import TrainingCLI

    class Options(TrainingCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise StopIteration(self._known())

    try:
        Options(command, [])
    except StopIteration as known:
        return [name for name in known.value if name not in ("help", "print_config")]
    raise AssertionError


def bases(python: str = "") -> dict[str, list[str]]:
    """Return a small command line that works for every command, in the folder that :func:`furnish` fills."""
    tiny = ["--dim", "8", "--heads", "1", "--repeats", "1", "--threads", "1"]
    fit = ["--config", "tiny.yaml", "--run", "out"]
    return {
        "fit": fit,
        "validate": ["--run", "run"],
        "test": ["--run", "run"],
        "predict": ["--run", "run", "--output", "out.jsonl"],
        "data prepare": ["text.txt", "--output", "out", "--workers", "1", "--progress", "false"],
        "data regbench": ["--output", "out", "--train_sequences", "2", "--test_sequences", "2", "--progress", "false"],
        "data mqar": ["--output", "out", "--train_examples", "20", "--test_examples", "5", "--progress", "false"],
        "data generate": ["facts", "--output", "out", "--progress", "false"],
        "data facts": ["--output", "out", "--documents", "20", "--test_documents", "5", "--progress", "false"],
        "data fetch": ["nope", "--output", "out", "--mirror", "file:///nowhere"],
        "data inspect": ["data"],
        "data show": ["run", "--step", "1"],
        "data verify": ["data"],
        "tokenizer train": ["text.txt", "--output", "out.json", "--vocab_size", "260", "--progress", "false"],
        "cost": ["--config", "tiny.yaml"],
        "launch": ["--config", "tiny.yaml", "--nodes", "1", "--gpus", "1", "--dry_run"],
        "sweep": ["sweep.yaml", "--dry_run", "--measure", "false", "--output", "out"],
        "evaluate": ["run", "--tasks", "loss_by_position", "--output", "out", "--contexts", "64", "--limit", "1"],
        "generate": ["run", "--prompt", "ab", "--max_new_tokens", "2"],
        "chat": ["run", "--max_new_tokens", "2"],
        "remember": ["run", "--text", "text.txt", "--output", "out"],
        "inspect": ["run", "--prompt", "abc", "--output", "out.html"],
        "export": ["run", "--output", "out"],
        "import": ["foreign.pt", "--output", "out.ckpt"],
        "checkpoint list": ["run"],
        "checkpoint verify": ["run"],
        "checkpoint consolidate": ["run", "--output", "out.safetensors"],
        "checkpoint convert": ["run", "--output", "out.ckpt"],
        "checkpoint compare": ["run", "run"],
        "report": ["run", "--output", "out"],
        "benchmark step": [*tiny, "--layers", "1", "--context_length", "16", "--batch_size", "1", "--vocab_size", "16"],
        "benchmark decode": ["--contexts", "16", "--prefills", "1", *tiny, "--layers", "1", "--vocab_size", "16"],
        "benchmark retrieval": ["run", "--pairs", "4096", "--repeats", "2", "--context", "64", "--neighbors", "16"],
    }


def furnish(folder: Path, run: Path, data: Path, config: Path) -> None:
    """Fill a folder with all that the lines of :func:`bases` and :data:`PLACES` name."""
    shutil.copytree(run, folder / "run")
    shutil.copytree(data, folder / "data")
    newest = sorted((folder / "run").rglob("*.ckpt"))[-1]
    shutil.copy(newest, folder / "checkpoint")
    (folder / "torn.ckpt").write_bytes(newest.read_bytes()[:1000])
    values = yaml.safe_load(config.read_text())
    values["data"]["path"] = "data"
    values.pop("run", None)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    (folder / "sweep.yaml").write_text(
        yaml.safe_dump({"base": "tiny.yaml", "stop": {"steps": 8}, "axes": {"model.learning_rate": [0.1, 0.2]}})
    )
    (folder / "folder").mkdir()
    (folder / "text.txt").write_text("What is read once is remembered. " * 20)
    (folder / "binary").write_bytes(bytes(range(256)) * 8)
    (folder / "foreign.pt").write_bytes(bytes(range(256)))
    (folder / "empty").write_bytes(b"")
    (folder / "latin.yaml").write_bytes("trainer: {max_steps: é}".encode("latin-1"))
    (folder / "page.json").write_text('{"a": [1, {"b": null}]}')
    (folder / "table.csv").write_text("a,b\n1,2\n")
    (folder / "loop").symlink_to("loop")
    (folder / "unreadable").write_text("text")
    (folder / "unreadable").chmod(0)
    (folder / "closed").mkdir(mode=0)


def value(dice: random.Random) -> str:
    """Return a value that mostly is nonsense."""
    return dice.choice(dice.choice([NUMBERS, TRAPS, TEXTS, PLACES]))


def lines(seed: int, count: int, commands: list[str] | None = None) -> Iterator[list[str]]:
    """Yield command lines: a base with one or two options, words or none of it changed."""
    dice = random.Random(seed)
    known = bases()
    options: dict[str, list[str]] = {}
    for _ in range(count):
        command = dice.choice(commands or [*TRAINING, *COMMANDS])
        if command not in options:
            options[command] = options_of(command)
        args = list(known[command])
        for _ in range(dice.choice([1, 1, 2])):
            kind = dice.random()
            name = dice.choice(options[command])
            if kind < 0.75:
                new = value(dice)
                if name.endswith(("num_nodes", "devices", "processes")) and new in ("2", "1e3", "1_0"):
                    new = "0"  # others would wait for processes that nobody starts
                if name.split(".")[-1] in ("output", "run", "path", "default_root_dir", "save_dir") and new.startswith(
                    ("/", "..")
                ):
                    new = "folder/x"
                at = args.index(f"--{name}") if f"--{name}" in args else None
                if at is not None and kind < 0.6:  # in the place of the good value
                    args[at + 1 : at + 2] = [new]
                else:
                    args += dice.choice([[f"--{name}", new], [f"--{name}={new}"]])
            elif kind < 0.8:
                args.append(f"--{name}")
            elif kind < 0.9:
                args.insert(dice.randrange(len(args) + 1), dice.choice(WORDS))
            elif args:
                del args[dice.randrange(len(args))]
        if any("\0" in word for word in args):  # which no command line can hold
            args = [word.replace("\0", "0") for word in args]
        yield [*command.split(), *args]


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Return what lies in a folder, with sizes and times."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            info = path.lstat()
            found[str(path.relative_to(folder))] = (info.st_size, 0 if path.is_dir() else info.st_mtime_ns)
    return found


def try_line(args: list[str], folder: Path, seconds: int = 240) -> Ended:
    """Run a command line in this process, within a folder that :func:`furnish` has filled."""
    before = state(folder)
    out, err = io.StringIO(), io.StringIO()
    status: Any = None
    trace = ""

    def late(*_: Any) -> None:
        raise TooLong

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    places = {"HOME": str(folder / "folder"), "MPLCONFIGDIR": tempfile.gettempdir()}
    environment = {**os.environ, **places, "HF_HUB_OFFLINE": "1"}
    try:
        with (
            contextlib.chdir(folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.dict(os.environ, environment, clear=True),
            mock.patch.object(sys, "stdin", io.StringIO("")),
            warnings.catch_warnings(),
        ):
            try:
                status = main(args)
            except TooLong:
                trace = "takes too long: " + "".join(traceback.format_exc()[-1500:])
            except BaseException:
                trace = traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    wrong = trace
    said = err.getvalue()
    if not wrong and status not in (0, 2):
        wrong = f"status {status}"
    if not wrong and status == 2 and len(said.strip().splitlines()) != 1:
        wrong = f"{len(said.strip().splitlines())} lines on standard error"
    if not wrong and status == 2 and len(said) > 2000:
        wrong = f"a line of {len(said)} characters"
    if not wrong and "Traceback" in said + out.getvalue():
        wrong = "a traceback is printed"
    after = state(folder)
    if not wrong and status != 0 and before != after:
        changed = sorted({*before.items()} ^ {*after.items()})
        wrong = f"leaves behind: {json.dumps(changed[:4])}"
    return Ended(args, status, out.getvalue(), said, wrong)


def spoiled(text: str, dice: random.Random) -> bytes:
    """Return a config with something wrong in it, mostly."""
    kind = dice.randrange(9)
    if kind == 0:
        return text.encode()[: dice.randrange(len(text))]
    if kind == 1:  # a line that is cut out, or that comes twice
        rows = text.splitlines(keepends=True)
        at = dice.randrange(len(rows))
        return "".join([*rows[:at], *rows[at] * dice.choice([0, 2]), *rows[at + 1 :]]).encode()
    if kind == 2:  # a byte that is no UTF-8, or none at all
        at = dice.randrange(len(text))
        return (
            text[:at].encode() + dice.choice([b"\xff", b"\x00", b"\x1b", b"\t", b"\xe2\x80\xa8"]) + text[at:].encode()
        )
    values = yaml.safe_load(text)
    places = [[key] for key in values]
    for path in places:
        inside = _at(values, path)
        places += [[*path, key] for key in inside] if isinstance(inside, dict) else []
    path = dice.choice(places)
    above = _at(values, path[:-1])
    if kind == 3:
        above[f"{path[-1]}x"] = above.pop(path[-1])
    elif kind == 4:  # two sections that change places
        other = dice.choice(places)
        _at(values, other[:-1])[other[-1]], above[path[-1]] = above[path[-1]], None
    elif kind == 5:
        above[path[-1]] = [above[path[-1]]]
    elif kind == 6:
        above[path[-1]] = {"a": above[path[-1]]}
    elif kind == 7:
        above[path[-1]] = dice.choice([None, [], {}, "", " ", -1, 0, 10**30, 1e308, True, "~", [[]], {1: 2}, "a\0b"])
    else:
        return text.encode() + f"\n{dice.choice(places)[0]}: {value(dice)}\n".encode(errors="replace")
    return yaml.safe_dump(values).encode()


def _at(values: Any, path: list[Any]) -> Any:
    for key in path:
        values = values[key]
    return values
