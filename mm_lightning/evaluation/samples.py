"""Records on disk: one JSON line each, kept as they come, so that an interrupted evaluation goes on where it was.

OUTPUT/NETWORK/TASK/
    settings.json      what was asked of which network, and every session that asked: written first
    before.HASH.*      the answers to the same questions of other data, that were there before these
    samples.jsonl      one record a line (of several processes: samples.1.jsonl, ... until the first gathers them)
    results.json       the rows of the table, and where they come from: written last
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from mm_lightning.errors import UserError
from mm_lightning.evaluation.task import Record
from mm_lightning.outputs import staged, write_json
from mm_lightning.redaction import redact_values

SETTINGS, SAMPLES, RESULTS = "settings.json", "samples.jsonl", "results.json"
DATA = "settings.data_hash"
PLACES = ("settings.data_dir", "settings.essays", "settings.text")
"""Settings that say where the data lie, which do not matter once their hash is known."""


class Samples:
    """The records of one task about one network.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def claim(self, identity: dict[str, Any], session: dict[str, Any] | None) -> None:
        """Make the folder, or check that it holds answers to what is asked now.

        Args:
            identity: all that decides the records.
            session: when, where and with which code they are made now; None to check only.

        Raises:
            UserError: the folder holds records of something else; it names what differs.
        """
        path = self.folder / SETTINGS
        known: dict[str, Any] = read_json(path) if path.is_file() else {"identity": identity, "sessions": []}
        before, now = flat(redact_values(known["identity"])), flat(redact_values(identity))
        differ = [f"{name} {before.get(name)!r}, not {now.get(name)!r}" for name in differences(before, now)]
        if differ and not self.count() and not (self.folder / RESULTS).is_file():
            known, differ = {"identity": identity, "sessions": []}, []  # of one that failed before its first answer
        if differ:
            raise UserError(
                f"{self.folder} holds answers to something else ({'; '.join(differ[:4])}): "
                f"give another --output, or --overwrite to begin anew"
            )
        if session is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            sessions = [self._ended(one) for one in known["sessions"]]
            write_json(path, {**known, "sessions": [*sessions, session]})

    def holds(self, identity: dict[str, Any]) -> bool:
        """Return whether the folder holds answers to what is asked now."""
        path = self.folder / SETTINGS
        if not path.is_file():
            return False
        before = flat(redact_values(read_json(path)["identity"]))
        return not differences(before, flat(redact_values(identity)))

    def close_session(self, seconds: float) -> None:
        """Note how long the last session took."""
        path = self.folder / SETTINGS
        known = read_json(path)
        *others, last = known["sessions"]
        write_json(path, {**known, "sessions": [*others, {**last, "seconds": round(seconds, 1)}]})

    def _ended(self, session: dict[str, Any]) -> dict[str, Any]:
        """Return an earlier session; one that was killed lasted until its last answer."""
        if "seconds" in session or "started" not in session:
            return session
        last = max((path.stat().st_mtime for path in self.files()), default=0.0)
        seconds = last - datetime.fromisoformat(session["started"]).timestamp()
        return {**session, "seconds": round(max(0.0, seconds), 1)}

    def renew(self, identity: dict[str, Any]) -> str | None:
        """Set the records aside that are answers to the same questions of other data, or of data that are not known.

        Returns:
            why; None where nothing was set aside.
        """
        path = self.folder / SETTINGS
        if not path.is_file():
            return None
        before, now = flat(redact_values(read_json(path)["identity"])), flat(redact_values(identity))
        if differences(before, now) != [DATA]:
            return None
        for file in [*self.files(), self.folder / RESULTS, path]:
            if file.exists():
                file.replace(file.with_name(f"before.{before.get(DATA, 'unknown')}.{file.name}"))
        if DATA not in before:
            return "an earlier version did not note what data it was asked on"
        return f"its data have changed (hash {before[DATA]} before, {now[DATA]} now)"

    def sessions(self) -> list[dict[str, Any]]:
        """Return date, code and hardware of every sitting, in order."""
        return read_json(self.folder / SETTINGS)["sessions"]

    def files(self) -> list[Path]:
        """Return the files that hold records."""
        return sorted(self.folder.glob("samples*.jsonl"))

    def read(self) -> dict[str, Record]:
        """Return every whole record by its key; a last line that was not finished is left out."""
        records = {}
        for path in self.files():
            try:
                data = path.read_bytes()
            except FileNotFoundError:  # gathered into samples.jsonl in the meantime, which is read last
                continue
            for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
                try:
                    record = json.loads(line)
                    records[record["key"]] = record
                except (ValueError, TypeError, KeyError) as error:
                    raise UserError(f"{path}, line {number} is damaged: delete the line, or the folder") from error
        return records

    def count(self) -> int:
        """Return about how many records there are, for a progress bar."""
        return sum(path.read_bytes().count(b"\n") for path in self.files() if path.exists())

    @contextmanager
    def writer(self, rank: int, world_size: int) -> Iterator[Any]:
        """Context manager that gives a function which appends a record and flushes it.

        Raises:
            UserError: another process is writing there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / (SAMPLES if world_size == 1 else f"samples.{rank}.jsonl")
        with open(path, "a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"another process is writing {path}: wait for it, or give another --output") from error
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # a line that a killed process left unfinished

            def write(record: Record) -> None:
                file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
                file.flush()

            yield write

    def gather(self, keys: Iterable[str], records: dict[str, Record]) -> list[Record]:
        """Join the files of all processes into samples.jsonl, in the order of the keys; return the records."""
        ordered = [records[key] for key in keys]
        target = self.folder / SAMPLES
        with staged(target) as beside, open(beside, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in ordered)
            file.flush()
            os.fsync(file.fileno())
        for path in self.files():
            if path != target:
                path.unlink()
        return ordered

    @contextmanager
    def begun_anew(self) -> Iterator[None]:
        """Context manager that takes what is there out of the way, and puts it back if it fails without an answer."""
        if not self.folder.is_dir():
            yield
            return
        with tempfile.TemporaryDirectory(prefix=f".{self.folder.name}.", suffix=".partial", dir=self.folder) as room:
            before = [*self.files(), *filter(Path.is_file, (self.folder / SETTINGS, self.folder / RESULTS))]
            for path in before:
                os.replace(path, Path(room, path.name))
            try:
                yield
            except BaseException:
                if not self.count():
                    for path in before:
                        os.replace(Path(room, path.name), path)
                raise


def read_json(path: Path) -> Any:
    """Return the content of a file that this package wrote.

    Raises:
        UserError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; delete its folder to begin anew") from error


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the names of what decides the records and is not the same; where data lie decides nothing, they do."""
    names = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    return [name for name in names if not (name in PLACES and now.get(DATA))]


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by their full names: {"a": {"b": 1}} -> {"a.b": 1}."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return values
