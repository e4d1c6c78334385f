"""Takes secrets out of text that is going to be kept: logs and run folders are shared more readily than passwords."""

from __future__ import annotations

import re

HIDDEN = "***"

# not of `tokens`, which are counted here
_WORD = (
    r"[\w.\-]*(?:token|"
    r"(?:secret|passw(?:or)?d|api_?key|access_?key|private_?key|signature|credential|x-amz-\w+)s?)"
)
# one slash: what pathlib leaves of a URL
_USER = re.compile(r"(\b[a-z][a-z0-9+.\-]*:/{1,2})[^\s/@\"'?#]+@", re.IGNORECASE)
_QUERY = re.compile(rf"([?&;](?:{_WORD}|sig|key|auth)=)[^&\s\"'#]+", re.IGNORECASE)
_OPTION = re.compile(rf"(--{_WORD}(?:=|\s+))[^\s\"']+", re.IGNORECASE)


def redact(text: str) -> str:
    """Hides user names and passwords in URLs, tokens in their queries, and the values of options that name a secret.

    >>> redact("s3://me:pass@host/data?token=abc&page=2")
    's3://***@host/data?token=***&page=2'
    """
    text = _USER.sub(rf"\1{HIDDEN}@", text)
    text = _QUERY.sub(rf"\1{HIDDEN}", text)
    return _OPTION.sub(rf"\1{HIDDEN}", text)


def redact_words(words: list[str]) -> list[str]:
    """As :func:`redact`, of a command line: a secret may be the word after its option."""
    found = [redact(word) for word in words]
    for n, word in enumerate(words[:-1]):
        if word.startswith("--") and _OPTION.fullmatch(f"{word} x"):
            found[n + 1] = HIDDEN
    return found
