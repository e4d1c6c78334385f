"""Secrets in URLs and options are hidden, all else stays."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import mm_lightning
from mm_lightning.outputs import write_json, write_text
from mm_lightning.redaction import redact, redact_values, redact_words
from mm_lightning.training.config_files import flatten_config
from mm_lightning.yaml_text import write_yaml


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("s3://me:pa55@host/data", "s3://***@host/data"),
        ("hf://tok3n@host/x", "hf://***@host/x"),
        ("https://host/a?token=abc&page=2", "https://host/a?token=***&page=2"),
        ("https://host/a?X-Amz-Signature=abc#top", "https://host/a?X-Amz-Signature=***#top"),
        ("https://host/a?page=1&api_key=abc", "https://host/a?page=1&api_key=***"),
        ('path: "https://host/a?sig=abc"', 'path: "https://host/a?sig=***"'),
        ("mm fit --hub_token abc --run x", "mm fit --hub_token *** --run x"),
        ("tokens: 5, --data.path runs/a@b --tokenizer bytes", "tokens: 5, --data.path runs/a@b --tokenizer bytes"),
        ("mm generate --max_new_tokens 40", "mm generate --max_new_tokens 40"),
        ("https://host/path/a@b", "https://host/path/a@b"),
    ],
)
def test_secrets_are_hidden(text, kept):
    assert redact(text) == kept


def test_the_word_after_an_option():
    assert redact_words(["mm", "--password", "pa55", "--run", "x"]) == ["mm", "--password", "***", "--run", "x"]
    assert redact_words(["mm", "--api_key=abc", "--tokenizer", "bytes"])[1:] == [
        "--api_key=***",
        "--tokenizer",
        "bytes",
    ]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("http://user:p@ss@host/x", "http://***@host/x"),
        ("http://h/c.jsonl?sig=abc: not allowed (401)", "http://h/c.jsonl?sig=***: not allowed (401)"),
        ("no option --hf_token: did you mean --x?", "no option --hf_token: did you mean --x?"),
        ("X-Api-Key: abc", "X-Api-Key: ***"),
        ("aws_secret_access_key = abc", "aws_secret_access_key = ***"),
        ("AccountKey=abc;EndpointSuffix=core", "AccountKey=***;EndpointSuffix=core"),
        ("NestedArg(key='api_key', val='abc')", "NestedArg(key='api_key', val=***)"),
        ("http://user:pa/s#s@host/x?mail=a@b", "http://***@host/x?mail=a@b"),
        ("http://host:8080/path/a@b", "http://host:8080/path/a@b"),
        ("http://host?mail=a@b", "http://host?mail=a@b"),
        ("s3://a:b@h/x s3://c:d@h/y", "s3://***@h/x s3://***@h/y"),
        ('{"api_key": "abc def", "x": 1}', '{"api_key": "***", "x": 1}'),
        ("Authorization: Bearer abcdefghijkl", "Authorization: *** ***"),
        (f"hf_{'aB3' * 11}x and AKIAIOSFODNN7EXAMPLE", "*** and ***"),
        ("runs/hf_transformer/sk-learn-experiments-2024/0", "runs/hf_transformer/sk-learn-experiments-2024/0"),
        ("https://h/x?X-Goog-Signature=1&sig=2", "https://h/x?X-Goog-Signature=***&sig=***"),
        ("--eos_token </s> --token abc", "--eos_token </s> --token ***"),
        ("there is no such token: give another", "there is no such token: give another"),
        ("curl -H 'authorization: Basic dXNlcjpwYXNz'", "curl -H 'authorization: *** ***'"),
        ("Bearer abcdef123456", "Bearer ***"),
        ("a basic introduction for bearer certificates", "a basic introduction for bearer certificates"),
        ("the file keeps no secrets: give them", "the file keeps no secrets: give them"),
        ("flops_per_token: 5ms, token: 5, max_tokens=5", "flops_per_token: 5ms, token: 5, max_tokens=5"),
    ],
)
def test_secrets_in_messages_and_what_only_looks_like_one(text, kept):
    assert redact(text) == kept
    assert redact(kept) == kept


def test_values_under_keys_that_name_a_secret():
    secret = {
        "api_key": "x",
        "apiKey": "x",
        "hub_token": "x",
        "password": 12,
        "credentials": {"user": "x", "pw": ["x"]},
    }
    secret |= {"storage_options": {"secret": "x"}, "aws_access_key_id": "x", "Authorization": "x"}
    plain = {"token": 5, "max_tokens": 5, "eos_token": "</s>", "tokenizer": "bytes", "flops_per_token": 2.5}
    plain |= {"special_tokens": ["<s>"], "text_key": "text", "hub_token": None, "n": [1, {"key": "a"}]}
    assert "x" not in str([leaf for _, leaf in flatten_config(redact_values(secret))])
    assert redact_values(secret)["password"] == "***"
    assert redact_values(plain) == plain
    assert redact_values({"command": ["mm", "--password", "x"]}) == {"command": ["mm", "--password", "***"]}
    assert redact_values(redact_values(secret)) == redact_values(secret)


def test_what_is_written_is_redacted_unless_it_is_data(tmp_path):
    write_json(tmp_path / "a.json", {"source": "http://u:pa55@h/x", "token": "pa55", "tokens": 3})
    write_yaml(tmp_path / "a.yaml", {"data": {"api_key": "pa55", "sources": ["http://u:pa55@h/x"]}})
    write_text(tmp_path / "a.txt", "from http://u:pa55@h/x")
    assert all("pa55" not in path.read_text() for path in tmp_path.iterdir())
    write_text(tmp_path / "b.txt", "http://u:pa55@h/x", exact=True)
    assert (tmp_path / "b.txt").read_text() == "http://u:pa55@h/x"


def test_log_warnings_and_traceback_are_redacted():
    program = """
import logging, warnings
from mm_lightning.redaction import guard_streams
guard_streams()
logging.getLogger("x").warning("%s: trying again", "http://u:pa55@h/x")
warnings.warn("asking http://u:pa55@h/x")
warnings.formatwarning = lambda message, *_: f"as Lightning does: {message}"
warnings.warn("asking http://u:pa55@h/x again")
raise OSError("cannot read http://u:pa55@h/x")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "http://***@h/x: trying again" in done.stderr
    assert "UserWarning: asking http://***@h/x" in done.stderr
    assert "as Lightning does: asking http://***@h/x again" in done.stderr
    assert "OSError: cannot read http://***@h/x" in done.stderr
    assert "pa55@" not in done.stderr.replace('"http://u:pa55@h/x"', "")  # a traceback of -c shows no source lines


def test_redacting_takes_time_with_the_length_only():
    for part in ("a.", "http://a:", "--", "-token", "x_token: ", "://"):
        redact(part * 20_000)  # with its square it would not end


ELSEWHERE = {
    "data/tokenizer.py": "a tokenizer is data",
    "data/regbench.py": "a tokenizer is data",
    "data/facts.py": "a tokenizer is data",
    "data/mqar.py": "a tokenizer is data",
    "data/tokenize_units.py": "tokens",
    "data/folder.py": "a lock",
    "evaluation/persistent/harness.py": "task definitions of the library, in a temporary folder",
    "evaluation/persistent/code.py": "a program that a network wrote, which is run",
    "evaluation/samples.py": "answers of a network",
    "evaluation/fetch.py": "what was downloaded",
    "experiments/report.py": "SVG, and CSV of csv_text",
    "experiments/tables.py": "CSV of csv_text",
    "experiments/evaluated/evaluation_report.py": "CSV of csv_text",
    "experiments/execution.py": "an exit status",
    "experiments/launchers.py": "a job's number, a lock, and what a run prints",
    "experiments/sweep.py": "a lock",
    "inference/export.py": "modeling code, and the tokenizer with its settings",
    "training/cli.py": "losses",
    "training/tensorboard_hparams.py": "settings without secrets, as event file",
    "training/dry_run.py": "made-up text, in a temporary folder",
    "checkpoint/universal.py": "a tag",
    "checkpoint/integrity.py": "checksums, and what a checkpoint says of itself",
    "checkpoint/writing.py": "checkpoints",
    "checkpoint/safetensors_file.py": "weights",
    "checkpoint/run_lock.py": "a lock",
    "callbacks/profiler.py": "a trace",
    "callbacks/watchdog.py": "where a process stands",
    "streams.py": "which stream was lost",
    "outputs.py": "the shared writers",
}
"""Modules that write files without the shared writers, which hide secrets, and why."""


def test_settings_are_written_by_the_shared_writers():
    root = Path(mm_lightning.__file__).parent
    files = [*root.rglob("*.py"), *(root.parent / "callbacks").rglob("*.py")]
    own = re.compile(r"\.write_text\(|open\([^)]*\"[wa]b?\+?\"|json\.dump\(|\.write_bytes\(")
    found = {
        str(path.relative_to(root.parent)).removeprefix("mm_lightning/")
        for path in files
        if own.search(path.read_text(encoding="utf-8"))
    }
    assert found - ELSEWHERE.keys() == set()
