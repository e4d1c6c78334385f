"""RegBench: languages to be learned in context, as a prepared folder like that of any text.

Every sequence is a document of 10 to 19 words from an automaton of its own, joined by `|`; no two automata of a folder
accept the same language. Documents are never cut: they lie whole in rows of context_length + 1 tokens, and the rest of
a row is filled with `bos`, which is never predicted. For each row of the validation split `validation/allowed.npy`
says which letters the automaton allows next, and `baselines.json` how well simple predictors do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import ClassVar

import numpy as np

from mm_lightning.data.automata import LETTERS, Automaton, Word, draw_automaton, draw_words
from mm_lightning.data.generator import SPLITS, Generator
from mm_lightning.data.manifest import Split
from mm_lightning.data.packing import lay_out, pack, write_split
from mm_lightning.data.progress import PrepareProgress
from mm_lightning.data.tokenizer import BEGIN, END, Tokenizer, load_tokenizer
from mm_lightning.outputs import write_json
from mm_lightning.ranges import Count, Seed, check_fields

BETWEEN, BOS, EOS = LETTERS, LETTERS + 1, LETTERS + 2
ALLOWED, BASELINES = "validation/allowed.npy", "baselines.json"
LONGEST = 19 * 49 + 18 + 2  # tokens of a document


@dataclass
class RegBenchConfig(Generator):
    """RegBench, the synthetic benchmark of learning languages in context.

    Args:
        train_sequences: for training, 1,000 to 40,000 in the papers.
        test_sequences: for validation, from automata that no training sequence has. They do not depend on
            train_sequences, and fewer training sequences are the first of more.
        seed: of all automata and words.
    """

    name: ClassVar[str] = "regbench"
    least_context: ClassVar[int] = LONGEST - 1
    files: ClassVar[tuple[str, ...]] = (ALLOWED, BASELINES)

    train_sequences: Count = 1000
    test_sequences: Count = 1000
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self, "regbench: ")

    def count(self, split: str) -> int:
        return self.train_sequences if split == "train" else self.test_sequences

    def fill(self, folder: Path, work: Path, row: int, progress: bool) -> tuple[Tokenizer, dict[str, Split]]:
        """Write tokenizer, shards, the letters that automata allow next, and how well simple predictors do."""
        from mm_lightning.data.regbench_metrics import baselines

        tokenizer = letter_tokenizer(work / "tokenizer.json")
        taken: set[Automaton] = set()
        splits = {}
        with PrepareProgress(sum(map(self.count, SPLITS)), progress, "generating") as bar:
            # Validation first, so that its automata are the same whatever is trained on.
            for split in ("validation", "train"):
                parts, masks = [], []
                for sample in generate(self, split, taken):
                    parts.append(np.array(sample.tokens(), np.uint16))
                    if split == "validation":
                        masks.append(np.array(sample.allowed(), np.uint32))
                    bar.report(1, len(parts[-1]), 1)
                splits[split] = write_split(folder, work, split, parts, row, BOS)
                if split == "validation":
                    rows = pack([len(part) for part in parts], row)
                    np.save(folder / ALLOWED, lay_out(rows, masks, row, 0)[:, :-1])
                    write_json(folder / BASELINES, baselines(parts, masks))
        return tokenizer, {name: splits[name] for name in ("train", "validation")}


@dataclass(frozen=True)
class Sample:
    """Words of one automaton."""

    automaton: Automaton
    words: list[Word]

    def tokens(self) -> list[int]:
        """[bos] word | word | ... word [eos]"""
        tokens = [BOS]
        for word in self.words:
            tokens += [*word, BETWEEN]
        return [*tokens[:-1], EOS]

    def allowed(self) -> list[int]:
        """For each token the letters that may follow it, as a bit mask; 0 where no letter follows."""
        masks: list[int] = []
        for word in self.words:
            masks += [*self.automaton.allowed(word), 0]
        return [*masks, 0]


def generate(config: RegBenchConfig, split: str, taken: set[Automaton]) -> Iterator[Sample]:
    """The samples of a split. Number i depends on seed, split and i alone, unless its automaton is taken.

    Args:
        config: how many, and the seed.
        split: train or validation.
        taken: canonical automata that are not to be used again; those of this split are added.
    """
    for index in range(config.count(split)):
        random = Random(f"RegBench of seed {config.seed}, {split} sequence {index}")
        automaton = draw_automaton(random).canonical()
        while automaton in taken:
            automaton = draw_automaton(random).canonical()
        taken.add(automaton)
        yield Sample(automaton, draw_words(automaton, random))


def letter_tokenizer(path: Path) -> Tokenizer:
    """Write the tokenizer.json of RegBench: a token a letter. Other characters of a text are left out."""
    import tokenizers

    names = [*(chr(ord("a") + letter) for letter in range(LETTERS)), "|", BEGIN, END]
    inner = tokenizers.Tokenizer(tokenizers.models.BPE({name: number for number, name in enumerate(names)}, []))
    inner.add_special_tokens([BEGIN, END])
    inner.decoder = tokenizers.decoders.Fuse()
    path.write_text(inner.to_str(pretty=True) + "\n", encoding="utf-8")
    tokenizer = load_tokenizer(path)
    tokenizer.name = "letters of RegBench"
    return tokenizer
