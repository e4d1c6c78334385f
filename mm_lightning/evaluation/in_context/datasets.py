"""Classification data sets as questions with labels, read from the files their authors publish."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mm_lightning.errors import UserError
from mm_lightning.evaluation.in_context.files import one_line, read_blocks, read_json, read_table, read_tsv

RULE = (
    "The predict answer must come from the demonstration examples with the exact format. The examples are as follows:"
)
"""The end of the paper's instructions."""

REDOCRED_CLASSES = 41
"""As many as TACRED has."""

# Relations of Re-DocRED that the list of names lacks.
TIMES = {
    "P569": "date of birth",
    "P570": "date of death",
    "P571": "inception",
    "P576": "dissolved",
    "P577": "publication date",
    "P580": "start time",
    "P582": "end time",
    "P585": "point in time",
}


@dataclass(frozen=True)
class Example:
    """One question with its answer.

    Attributes:
        question: as it stands in a prompt, its words included: `service query: <x>`.
        lead: what stands before the label, without the space between them: `intent category:`.
        label: its class.
    """

    question: str
    lead: str
    label: str


@dataclass(frozen=True)
class Dataset:
    """A classification data set: examples to show and examples to ask about.

    Attributes:
        name: of the data set.
        instruction: what a prompt begins with.
        asks: the words that every question begins with: `service query:`.
        labels: the classes, in the order that numbers the anonymous ones and in which examples stand unshuffled.
        train: demonstrations are drawn from these.
        test: the questions.
    """

    name: str
    instruction: str
    asks: str
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    test: tuple[Example, ...]

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise UserError(f"{self.name} has {len(self.labels)} classes: there is nothing to tell apart")
        if not self.test:
            raise UserError(f"{self.name} has no test examples")


def banking77(folder: Path) -> Dataset:
    """Bank customers' queries, 77 intents; `train.csv` and `test.csv` with columns text and category.

    Raises:
        UserError: a file is missing, or a row is bad.
    """
    parts = {}
    for part in ("train", "test"):
        rows = read_table(folder / f"{part}.csv", "text", "category")
        parts[part] = [Example(f"service query: {text}", "intent category:", label) for _, text, label in rows]
    instruction = f"Given a customer service query, please predict the intent of the query. {RULE}"
    return _whole("banking77", instruction, "service query:", parts["train"], parts["test"])


def goemotions(folder: Path) -> Dataset:
    """Comments with one emotion of 28; `train.tsv`, `test.tsv` (text, label ids, comment id) and `labels.txt`.

    Raises:
        UserError: a file is missing, or a row is bad.
    """
    names = {row - 1: name for row, (name,) in read_tsv(folder / "labels.txt", 1)}
    parts: dict[str, list[Example]] = {}
    for part in ("train", "test"):
        path = folder / f"{part}.tsv"
        parts[part] = []
        for row, (text, ids, _) in read_tsv(path, 3):
            if not all(number.isdigit() and int(number) in names for number in ids.split(",")):
                raise UserError(
                    f"{path}, row {row}: {ids!r} is not a list of label ids from 0 to {max(names, default=0)}"
                )
            if "," not in ids:
                parts[part].append(Example(f"comment: {one_line(text)}", "emotion category:", names[int(ids)]))
    instruction = f"Given a comment, please predict the emotion category of this comment. {RULE}"
    return _whole("goemotions", instruction, "comment:", parts["train"], parts["test"], [*names.values()])


def _relations(name: str, train: list[Example], test: list[Example]) -> Dataset:
    instruction = (
        "Given a sentence and a pair of subject and object entities within the sentence, please predict the relation "
        f"between the given entities. {RULE}"
    )
    return _whole(name, instruction, "sentence:", train, test)


def relation(sentence: str, subject: str, thing: str, label: str) -> Example:
    """Between two entities of a sentence."""
    subject, thing = one_line(subject), one_line(thing)
    return Example(f"sentence: {one_line(sentence)}", f"the relation between {subject} and {thing} is:", label)


BRACKETS = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}"}


def tacred(folder: Path) -> Dataset:
    """TACRED from the user's licensed copy: `train.json`, `dev.json`, `test.json`; 41 classes, without `no_relation`.

    Demonstrations are drawn from train and dev together: train alone has 6 examples of its rarest relation.

    Raises:
        UserError: a file is missing, or a row is bad.
    """
    parts: dict[str, list[Example]] = {}
    for part in ("train", "dev", "test"):
        path = folder / f"{part}.json"
        parts[part] = []
        for row, entry in enumerate(read_json(path, list), 1):
            try:
                tokens = [BRACKETS.get(token, token) for token in entry["token"]]
                places = [slice(int(entry[f"{e}_start"]), int(entry[f"{e}_end"]) + 1) for e in ("subj", "obj")]
                subject, thing = (" ".join(tokens[place]) for place in places)
                label = str(entry["relation"])
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{path}, row {row}: not an example of TACRED's official JSON ({error!r})") from error
            if not (subject and thing):
                raise UserError(f"{path}, row {row}: an entity lies outside the sentence of {len(tokens)} tokens")
            if label != "no_relation":
                parts[part].append(relation(" ".join(tokens), subject, thing, label))
    return _relations("tacred", parts["train"] + parts["dev"], parts["test"])


SEMEVAL_FILES = {"train": "TRAIN_FILE.TXT", "test": "TEST_FILE_FULL.TXT"}


def semeval2010_task8(folder: Path) -> Dataset:
    """Relations between two nominals; 18 of the 19 classes, the other one having a single example.

    Raises:
        UserError: a file is missing, or a block is bad.
    """
    parts: dict[str, list[Example]] = {}
    for part, name in SEMEVAL_FILES.items():
        path = folder / name
        parts[part] = []
        for row, lines in read_blocks(path):
            text = lines[0].partition("\t")[2].strip().removeprefix('"').removesuffix('"')
            entities = []
            for tag in ("e1", "e2"):
                before, _, rest = text.partition(f"<{tag}>")
                entity, end, after = rest.partition(f"</{tag}>")
                entities.append(entity)
                text = before + entity + after
                if not end or not entity:
                    raise UserError(f"{path}, row {row}: no <{tag}>...</{tag}> in {lines[0][:80]!r}")
            if len(lines) < 2:
                raise UserError(f"{path}, row {row}: no line with a relation below the sentence")
            parts[part].append(relation(text, entities[0], entities[1], lines[1].strip()))
    seldom = {label for label, count in Counter(example.label for example in parts["train"]).items() if count < 2}
    train, test = ([e for e in parts[part] if e.label not in seldom] for part in ("train", "test"))
    return _relations("semeval2010_task8", train, test)


def redocred(folder: Path) -> Dataset:
    """Re-DocRED as sentences with a pair of entities: its most frequent relations, as many as TACRED has.

    Demonstrations come from `dev_revised.json`, questions from `test_revised.json`; names of relations from
    `pid2name.json` beside them or in `../fewrel`. A pair counts where it has one relation only and both entities
    are named in one sentence, the first such sentence being taken.

    Raises:
        UserError: a file is missing, or a document is bad.
    """
    beside = folder / "pid2name.json"
    listed = read_json(beside if beside.exists() else folder.parent / "fewrel" / "pid2name.json", dict)
    names = {**{number: name for number, (name, *_) in listed.items()}, **TIMES}
    train, test = (_pairs(folder / f"{part}_revised.json", names) for part in ("dev", "test"))
    frequent = Counter(example.label for example in train).most_common(REDOCRED_CLASSES)
    labels = {label for label, _ in frequent}
    train, test = ([e for e in part if e.label in labels] for part in (train, test))
    return _relations("redocred", train, test)


def _pairs(path: Path, names: dict[str, str]) -> list[Example]:
    examples = []
    for row, document in enumerate(read_json(path, list), 1):
        try:
            related: dict[tuple[int, int], set[str]] = {}
            for fact in document["labels"]:
                related.setdefault((fact["h"], fact["t"]), set()).add(fact["r"])
            for (head, tail), relations in sorted(related.items()):
                first, second = (
                    {m["sent_id"]: m["name"] for m in reversed(document["vertexSet"][entity])}
                    for entity in (head, tail)
                )
                shared = sorted(first.keys() & second.keys())
                if len(relations) == 1 and shared:
                    sentence = " ".join(document["sents"][shared[0]])
                    number = next(iter(relations))
                    label = names.get(number, number)
                    examples.append(relation(sentence, first[shared[0]], second[shared[0]], label))
        except (KeyError, TypeError, IndexError) as error:
            raise UserError(f"{path}, row {row}: not a document of DocRED's JSON ({error!r})") from error
    return examples


def _whole(
    name: str, instruction: str, asks: str, train: list[Example], test: list[Example], labels: list[str] | None = None
) -> Dataset:
    """With the classes in alphabetical order if no other is given."""
    known = labels or sorted({example.label for example in train})
    strange = sorted({example.label for example in test} - set(known))
    if strange:
        raise UserError(f"{name}: the test examples have a class that no demonstration has: {strange[0]!r}")
    return Dataset(name, instruction, asks, tuple(known), tuple(train), tuple(test))


READERS = {
    "banking77": banking77,
    "goemotions": goemotions,
    "tacred": tacred,
    "semeval2010_task8": semeval2010_task8,
    "redocred": redocred,
}
"""Each reads the data set of its name from a folder."""
