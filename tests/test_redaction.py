"""Secrets in URLs and options are hidden, all else stays."""

import pytest

from mm_lightning.redaction import redact, redact_words


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
