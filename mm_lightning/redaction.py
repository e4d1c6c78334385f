"""Redaction of secrets in what is kept or shown: logs and run folders are shared more readily than passwords.

Every writer of settings does so by itself: :mod:`mm_lightning.outputs` (text and JSON), `yaml_text.write_yaml`, the
log, error messages and tracebacks. What is data stays as it is: texts that were read, generated or predicted,
tokenizers, metrics.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import traceback
import warnings
from types import TracebackType
from typing import Any, TextIO

from mm_lightning.terminal import visible

HIDDEN = "***"

_NAMES = (
    r"secret|passw(?:or)?d|passphrase|api[_\-]?key|access_?key|account_?key|private_?key|signature|credential"
    r"|authorization"
)
# not of `tokens`, which are counted here; bounded, so that long words take no time with their square
_WORD = rf"[\w.\-]{{0,64}}(?:token|(?:{_NAMES}|x-amz-\w{{1,64}})s?)"
# one slash: what pathlib leaves of a URL; a password may hold @, # and, unless it begins like a port, a slash
_SCHEME = r"(?<![a-z0-9+.\-])([a-z][a-z0-9+.\-]{0,30}:/{1,2})"
_USER = re.compile(
    rf"{_SCHEME}(?:[^\s/:@\"'?#]{{0,256}}:(?!\d{{1,5}}(?:[/?#]|$))[^\s\"']{{0,512}}?@(?=[^\s@/\"']{{0,256}}(?:[\s/\"']|$))"
    rf"|[^\s/@\"'?#]{{1,512}}@)",
    re.IGNORECASE,
)
# not the punctuation of the sentence that a URL ends
_QUERY = re.compile(rf"([?&;](?:{_WORD}|sig|key|auth)=)[^&\s\"'#]*[^&\s\"'#:,.)]", re.IGNORECASE)
_OPTION = re.compile(rf"(--{_WORD}(?:=|\s+))[^\s\"']+", re.IGNORECASE)
_PAIR = re.compile(
    rf"(?<![\w.\-?&;])([\"']?{_WORD}[\"']?(?:=|:\s+))(\"[^\"\n]*\"|'[^'\n]*'|[^\s,;}}\]\"'{{\[]+)", re.IGNORECASE
)
_SPACED = re.compile(rf"(?<![\w.\-])([\w.\-]{{0,64}}(?:{_NAMES})s?\s+=\s+)[^\s\"',;]+", re.IGNORECASE)
_PARSED = re.compile(rf"(key='{_WORD}', val=)('[^']*'|[^,)]+)", re.IGNORECASE)
"""What the parser says of an option of a class that it could not place."""
# of words that follow, such as "basic knowledge", a token differs by its digits
_BEARER = re.compile(
    r"(\bbearer\s+(?=[^\s\"']{0,256}\d)|\bauthorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic|token)\s+)[\w.~+/\-]{8,}=*",
    re.IGNORECASE,
)
# what services begin their tokens with, at the length they have: folders are called hf_transformer, too
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9_])(?:hf_[A-Za-z0-9]{30,}|(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{30,}"
    r"|github_pat_\w{30,}|sk-(?:[A-Za-z]+-)?[A-Za-z0-9]{32,}|xox[abprs]-[A-Za-z0-9\-]{20,})(?![A-Za-z0-9])"
)
# a key of a mapping, in snake case: of `token` the ones that open something, not those of a text
_KEY = re.compile(rf"(?:^|_)(?:(?:{_NAMES})s?(?:_id|_key|_value)?|auth|bearer)$")
_TOKEN_KEY = re.compile(r"(?:^|_)token$")
_OF_TEXT = re.compile(r"(?:^|_)(?:bos|eos|pad|unk|sep|cls|mask|begin|end|start|stop|first|last|next|image|per)_token$")


def redact(text: str) -> str:
    """Hide user names and passwords in URLs, tokens in their queries, the values of options, keys and headers that
    name a secret, and what looks like a token of a well-known service.

    >>> redact("s3://me:pass@host/data?token=abc&page=2")
    's3://***@host/data?token=***&page=2'
    """
    text = _USER.sub(rf"\1{HIDDEN}@", text)
    text = _QUERY.sub(rf"\1{HIDDEN}", text)
    text = _OPTION.sub(lambda match: match[0] if _of_text(match[1]) else match[1] + HIDDEN, text)
    text = _BEARER.sub(rf"\1{HIDDEN}", text)
    text = _PAIR.sub(_hide_pair, text)
    text = _PARSED.sub(rf"\1{HIDDEN}", _SPACED.sub(rf"\1{HIDDEN}", text))
    return _TOKEN.sub(HIDDEN, text)


def _of_text(name: str) -> bool:
    """Return whether the name of an option or key, with what is around it, is of a token of text: --eos_token."""
    return bool(_OF_TEXT.search(name.strip("-\"':= \t\n").lower().replace("-", "_").replace(".", "_")))


def _hide_pair(match: re.Match[str]) -> str:
    name, value = match[1], match[2]
    if name.startswith("--") and ":" in name:  # a sentence about an option
        return match[0]
    if re.search(r"token[\"']?(?:=|:\s+)$", name, re.IGNORECASE) and re.fullmatch(r"[\d.,e+\-]+", value):
        return match[0]  # counted
    if re.fullmatch(r"(?:token|\w+s):\s+", name, re.IGNORECASE) and value.isalpha():
        return match[0]  # "the file keeps no secrets: give them again"
    if _of_text(name) or value.strip("\"'").lower() in ("", "null", "none", "true", "false"):
        return match[0]
    quote = value[0] if value[0] in "\"'" else ""
    return f"{name}{quote}{HIDDEN}{quote}"


def redact_words(words: list[str]) -> list[str]:
    """Redact the words of a command line, where a secret may be the word after its option."""
    redacted = [redact(word) for word in words]
    for n, word in enumerate(words[:-1]):
        if word.startswith("--") and _OPTION.fullmatch(f"{word} x") and not _of_text(word):
            redacted[n + 1] = HIDDEN
    return redacted


def names_secret(key: str) -> bool:
    """Return whether a key of a mapping names a secret: api_key, hub_token, but not tokens, tokenizer, eos_token."""
    name = _snake(key)
    return _is_password(name) or (bool(_TOKEN_KEY.search(name)) and not _OF_TEXT.search(name))


def _is_password(name: str) -> bool:
    return bool(_KEY.search(_snake(name)))


def _snake(key: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower().replace("-", "_").replace(".", "_").rstrip("_")


def redact_values(value: Any, hide: bool = False, numbers: bool = False) -> Any:
    """Return nested lists and mappings with secrets hidden, as :func:`redact` does, also under keys that name one.

    Args:
        value: as JSON and YAML hold it.
        hide: it stands under such a key.
        numbers: numbers there are secrets too; those beside `token` are counts.
    """
    if isinstance(value, dict):
        return {
            redact(key) if isinstance(key, str) else key: redact_values(
                inner, hide or names_secret(str(key)), numbers or _is_password(str(key))
            )
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        if all(isinstance(word, str) for word in value):
            return [HIDDEN for _ in value] if hide else redact_words(list(value))
        return [redact_values(inner, hide, numbers) for inner in value]
    if isinstance(value, str):
        return HIDDEN if hide and value else redact(value)
    return HIDDEN if hide and numbers and isinstance(value, int | float) and not isinstance(value, bool) else value


def guard_streams() -> None:
    """Let what Python itself writes for people (log, warnings, the traceback of an error) go through :func:`redact`."""
    if not getattr(logging.getLogRecordFactory(), "redacts", False):
        make = logging.getLogRecordFactory()

        def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
            made = make(*args, **kwargs)
            try:
                text = made.getMessage()
            except (TypeError, ValueError):  # logging says so itself
                return made
            if (hidden := visible(redact(text))) != text:
                made.msg, made.args = hidden, ()
            return made

        record.redacts = True  # type: ignore[attr-defined]
        logging.setLogRecordFactory(record)
    warnings.showwarning = print_warning
    sys.excepthook = print_traceback


def print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning without secrets, as `warnings.showwarning` does with them, in the form that is set by then."""
    text = visible(redact(warnings.formatwarning(message, category, filename, lineno, line)))
    with contextlib.suppress(OSError, AttributeError):  # no standard error
        (file or sys.stderr).write(text)


def print_traceback(kind: type[BaseException], error: BaseException, place: TracebackType | None) -> None:
    """Print the traceback of an error without secrets, as `sys.excepthook` does with them."""
    sys.stderr.write(visible(redact("".join(traceback.format_exception(kind, error, place)))))
