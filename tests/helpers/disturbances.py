"""Disturbances of a long run in random order: kills, signals, stops, full disks, dying workers, closed pipes."""

import contextlib
import os
import random
import select
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from harness import Run, entries, has_checkpoint

ENDING = ("kill -9", "SIGTERM", "SIGUSR1")
KINDS = (*ENDING, "SIGSTOP", "full disk", "loader worker", "closed pipe")


class Pump:
    """Copies what a run prints from a pipe to a log, until the reading end is closed, which loses nothing but that."""

    def __init__(self, pipe: Path, log: Path) -> None:
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
        self._end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._copy, args=(log,), daemon=True)
        self._thread.start()

    def _copy(self, log: Path) -> None:
        with log.open("ab") as file:
            while not self._over.is_set():
                ready, _, _ = select.select([self._end], [], [], 0.1)
                data = os.read(self._end, 1 << 16) if ready else b""
                file.write(data)
                file.flush()
                if ready and not data:  # nobody writes yet, or any more
                    time.sleep(0.1)

    def close(self) -> None:
        """The reader goes away."""
        if not self._over.is_set():
            self._over.set()
            self._thread.join()
            os.close(self._end)


class Life:
    """A run from a start to its end, in a session of its own."""

    def __init__(self, args: list[str], folder: Path, log: Path, hook: Callable[[], None] | None) -> None:
        self.folder = folder
        self.pump = Pump(log.with_suffix(".pipe"), log)
        self.run = Run(args, log.with_suffix(".pipe"), hook=hook)
        self.run.log = log
        self.pid: int = self.run.processes[0].pid or 0

    def progress(self, lines: int = 1, timeout: float = 180) -> None:
        """Wait until it has logged more steps."""
        wanted, deadline = entries(self.folder) + lines, time.monotonic() + timeout
        while entries(self.folder) < wanted:
            assert self.run.alive(), f"ended with {self.run.wait()}: {self.run.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"no progress: {self.run.log.read_text()[-3000:]}"
            time.sleep(0.05)

    def end(self, kind: str) -> None:
        """End it by a signal; nothing of it is left over."""
        if kind == "kill -9":
            self.run.kill()
        else:
            os.kill(self.pid, getattr(signal, kind))
            assert self.run.wait(180) == [85], self.run.log.read_text()[-3000:]
        deadline = time.monotonic() + 60
        while left := [pid for pid, _, session in processes() if session == self.pid]:
            assert time.monotonic() < deadline, f"left over: {left}"
            time.sleep(0.1)
        self.pump.close()

    def stop(self, seconds: float) -> None:
        """Stop all of it for a while."""
        os.killpg(self.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.killpg(self.pid, signal.SIGCONT)

    def fill_disk(self, seconds: float) -> None:
        """Fill the disk of the run folder, and all that is made free there, for a while."""
        ballast, until = self.folder.parent / "ballast", time.monotonic() + seconds
        try:
            with ballast.open("wb", buffering=0) as file:
                while time.monotonic() < until:
                    with contextlib.suppress(OSError):
                        while file.write(b"x" * 4096) == 4096:
                            pass
                    time.sleep(0.02)
        finally:
            ballast.unlink()

    def kill_worker(self, draw: random.Random) -> None:
        """Kill a process that loads data: a child of the server that they are forked from."""
        family = processes()
        children = {pid for pid, parent, _ in family if parent == self.pid}
        workers = [pid for pid, parent, session in family if parent in children and session == self.pid]
        os.kill(draw.choice(workers), signal.SIGKILL)


def processes() -> list[tuple[int, int, int]]:
    """(process, parent, session) of all processes that have not ended."""
    rows = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split() if entry.name.isdigit() else ["Z"]
        except OSError:
            continue
        if fields[0] != "Z":
            rows.append((int(entry.name), int(fields[1]), int(fields[3])))
    return rows


def disturb(
    args: list[str],
    folder: Path,
    log: Path,
    seconds: float,
    seed: int,
    limit: float,
    pauses: tuple[float, float],
    hook: Callable[[], None],
) -> list[str]:
    """Disturb a run for some time, each kind of disturbance as often as the others, and let it end.

    Args:
        args: of `mm fit`, without --resume.
        folder: its run folder, on a file system that can be filled.
        log: takes what it prints.
        seconds: how long at least; the last round of all kinds is finished.
        seed: of kinds and moments.
        limit: seconds of the Watchdog.
        pauses: the shortest and the longest time between two disturbances.
        hook: called in the run's processes when they start.

    Returns:
        a line for each disturbance.
    """
    draw, begin, events, life, waiting = random.Random(seed), time.monotonic(), [], None, []
    while not events or waiting or time.monotonic() - begin < seconds:
        waiting = waiting or draw.sample(KINDS, len(KINDS))
        if life is None:
            life = Life([*args, "--resume"] if has_checkpoint(folder) else args, folder, log, hook)
            life.progress(2)
        time.sleep(draw.uniform(*pauses))
        kind, what, step = waiting.pop(), "", entries(folder)
        if kind in ENDING:
            life.end(kind)
            life = None
        elif kind == "SIGSTOP":
            what = f" for {(pause := limit * 1.5 + draw.uniform(1, 5)):.0f} s"
            life.stop(pause)
        elif kind == "full disk":
            what = f" for {(pause := draw.uniform(1, 6)):.1f} s"
            life.fill_disk(pause)
        elif kind == "loader worker":
            life.kill_worker(draw)
        else:
            life.pump.close()
        events.append(f"{time.monotonic() - begin:7.1f} s  about line {step}: {kind}{what}")
        print(events[-1], flush=True)
        if life is not None:
            life.progress(2)
    if life is not None:
        life.end("kill -9")
        events.append(f"{time.monotonic() - begin:7.1f} s  kill -9")
    Run([*args, "--resume"], log).finish(timeout=600 + 2 * seconds)
    return events
