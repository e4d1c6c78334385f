"""`mm data fetch`: the public data sets that evaluations ask about, from where their authors publish them."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from mm_lightning.console import say
from mm_lightning.decompress import opened
from mm_lightning.errors import UserError
from mm_lightning.outputs import made_folder
from mm_lightning.ranges import Name, Place
from mm_lightning.text_files import read_json, read_text, text_lines


def _questions(path: Path) -> int:
    return sum(len(paragraph["qas"]) for article in read_json(path)["data"] for paragraph in article["paragraphs"])


def _csv_rows(path: Path) -> int:
    return sum(1 for row in csv.reader(io.StringIO(read_text(path), newline="")) if row) - 1


def _entries(path: Path) -> int:
    return len(read_json(path))


def _lines(path: Path) -> int:
    return sum(1 for _ in text_lines(path))


def _blocks(path: Path) -> int:
    return len(re.findall(r"^\d+\t", read_text(path), re.MULTILINE))


@dataclass(frozen=True)
class PublicFile:
    """A file of a public data set.

    Attributes:
        name: its name in the folder of the data set.
        address: where it is published.
        rows: the number of its rows as published.
        count: counts the rows of a file; it raises an error if the file is something else.
        member: its path in the zip archive at the address; None if the address is the file itself.
    """

    name: str
    address: str
    rows: int
    count: Callable[[Path], int]
    member: str | None = None


_GITHUB = "https://raw.githubusercontent.com"
_BANKING = f"{_GITHUB}/PolyAI-LDN/task-specific-datasets/master/banking_data"
_EMOTIONS = f"{_GITHUB}/google-research/google-research/master/goemotions/data"
_SEMEVAL = "https://github.com/sahitya0000/Relation-Classification/raw/master/corpus/SemEval2010_task8_all_data.zip"
_REDOCRED = f"{_GITHUB}/tonytan48/Re-DocRED/main/data"
_FEWREL = f"{_GITHUB}/thunlp/FewRel/master/data"
_NAMES = PublicFile("pid2name.json", f"{_FEWREL}/pid2name.json", 744, _entries)

DATA_SETS: dict[str, tuple[PublicFile, ...]] = {
    "squad": (
        PublicFile(
            "dev-v2.0.json", "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v2.0.json", 11_873, _questions
        ),
    ),
    "hotpotqa": (
        PublicFile(
            "hotpot_dev_distractor_v1.json",
            "http://curtis.ml.cmu.edu/datasets/hotpot/hotpot_dev_distractor_v1.json",
            7_405,
            _entries,
        ),
    ),
    "banking77": (
        PublicFile("train.csv", f"{_BANKING}/train.csv", 10_003, _csv_rows),
        PublicFile("test.csv", f"{_BANKING}/test.csv", 3_080, _csv_rows),
    ),
    "goemotions": (
        PublicFile("train.tsv", f"{_EMOTIONS}/train.tsv", 43_410, _lines),
        PublicFile("dev.tsv", f"{_EMOTIONS}/dev.tsv", 5_426, _lines),
        PublicFile("test.tsv", f"{_EMOTIONS}/test.tsv", 5_427, _lines),
        PublicFile("labels.txt", f"{_EMOTIONS}/emotions.txt", 28, _lines),
    ),
    "semeval2010_task8": (
        PublicFile(
            "TRAIN_FILE.TXT",
            _SEMEVAL,
            8_000,
            _blocks,
            "SemEval2010_task8_all_data/SemEval2010_task8_training/TRAIN_FILE.TXT",
        ),
        PublicFile(
            "TEST_FILE_FULL.TXT",
            _SEMEVAL,
            2_717,
            _blocks,
            "SemEval2010_task8_all_data/SemEval2010_task8_testing_keys/TEST_FILE_FULL.TXT",
        ),
    ),
    "redocred": (
        PublicFile("dev_revised.json", f"{_REDOCRED}/dev_revised.json", 500, _entries),
        PublicFile("test_revised.json", f"{_REDOCRED}/test_revised.json", 500, _entries),
        _NAMES,
    ),
    "fewrel": (PublicFile("val_wiki.json", f"{_FEWREL}/val_wiki.json", 16, _entries), _NAMES),
}


def fetch_command(
    names: list[Name] | Name, output: Place = "data", mirror: Name | None = None, overwrite: bool = False
) -> None:
    """Download the public data sets that `mm evaluate` asks about.

    mm data fetch squad hotpotqa banking77 goemotions semeval2010_task8 redocred

    Each comes from where its authors publish it, into OUTPUT/NAME, where `mm evaluate --data_dir OUTPUT` looks for it,
    and is kept if it has as many rows as published. Files that are there stay.

    Args:
        names: one or several of squad, hotpotqa, banking77, goemotions, semeval2010_task8, redocred and fewrel, or all.
        output: the folder for all data sets.
        mirror: a folder or address (https, s3, ...) that holds MIRROR/NAME/FILE, instead of the published addresses.
        overwrite: replace files that are there.
    """
    words = [word for text in ([names] if isinstance(names, str) else names) for word in text.split(",") if word]
    chosen = list(dict.fromkeys(name for word in words for name in (DATA_SETS if word == "all" else (word,))))
    for name in chosen:
        if name not in DATA_SETS:
            more = "; TACRED needs a license (LDC2018T24)" if name == "tacred" else ""
            raise UserError(f"there is no data set {name!r} to fetch: choose {', '.join(DATA_SETS)}, or all{more}")
    folder = Path(output).expanduser()
    try:
        with made_folder(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as partial:
            for name in chosen:
                for file in DATA_SETS[name]:
                    _fetch(file, folder / name, Path(partial), mirror, overwrite)
    except OSError as error:  # those of the network are UserErrors
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error


def _fetch(file: PublicFile, folder: Path, partial: Path, mirror: str | None, overwrite: bool) -> None:
    """Download, check and store one file; `partial` is a folder for what is not checked yet."""
    target = folder / file.name
    if target.exists() and not overwrite:
        say(f"{target} is there already")
        return
    address = file.address if mirror is None else f"{mirror.rstrip('/')}/{folder.name}/{file.name}"
    member = file.member if mirror is None else None
    part = f"its {member}" if member else "it"
    by_hand = f"get {part} by other means and put it at {target}, or name a copy with --mirror"
    whole = partial / hashlib.sha256(address.encode()).hexdigest()  # an archive serves several files
    if not whole.exists():
        say(f"{target} from {address}", stderr=True)
        try:
            download(address, whole)
        except Exception as error:  # of any store's library
            reason = " ".join(str(error).removeprefix(f"cannot read {address}: ").split())[:200]
            raise UserError(f"cannot get {address} ({reason}): {by_hand}") from error
    content = whole
    if member is not None:
        content = partial / f"{folder.name}-{file.name}"
        try:
            with zipfile.ZipFile(whole) as archive, archive.open(member) as inside, content.open("wb") as out:
                shutil.copyfileobj(inside, out)
        except (zipfile.BadZipFile, KeyError) as error:
            raise UserError(f"{address} is not the archive that was published ({error}): {by_hand}") from error
    try:
        rows = file.count(content)
    except (UserError, csv.Error, KeyError, TypeError, AttributeError) as error:
        reason = str(error).replace(str(content), file.name)
        raise UserError(f"{address} is not the file that was published ({reason}): {by_hand}") from error
    if rows != file.rows:
        raise UserError(f"{address} has {rows:,} rows where {file.rows:,} were published: {by_hand}")
    folder.mkdir(exist_ok=True)
    shutil.copyfile(content, partial / "next")
    (partial / "next").replace(target)
    say(f"{target}: {rows:,} rows")


def download(address: str, target: Path) -> None:
    """Write what is at an address, a URL of any store that fsspec knows or a local path, into a file.

    Raises:
        OSError, UserError: it cannot be read, also after some tries.
    """
    place = str(Path(address).expanduser()) if address[0] == "~" else address
    with opened(place, None) as stream, target.open("wb") as file:
        shutil.copyfileobj(stream, file)


def fetch_hint(path: Path) -> str:
    """Return the words that name the command for a missing file of a public data set, to go before other advice.

    They are empty for other files.
    """
    name, output = path.parent.name, path.parent.parent
    if name not in DATA_SETS:
        return ""
    option = "" if output == Path("data") else f" --output {quote(str(output))}"
    return f"`mm data fetch {name}{option}` gets it; or "
