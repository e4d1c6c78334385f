"""Small corpora for the tests."""

import json
import random

WORDS = [
    "the",
    "memory",
    "keys,",
    "values;",
    "néw",
    "döcument",
    "字",
    "🙂",
    "def",
    "f(x):\n",
    "   return",
    "x\n\n",
    "once.",
]


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Different documents of 1 to 80 words."""
    draw = random.Random(seed)
    return [f"{n} " + " ".join(draw.choices(WORDS, k=draw.randint(1, 80))) for n in range(count)]


def write_lines(path, texts, key="text"):
    """A file of JSON lines; its path."""
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)
