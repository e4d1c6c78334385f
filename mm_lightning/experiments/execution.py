"""Execute the runs of a sweep: start them as slots become free, show progress, report failures, stop cleanly."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from mm_lightning.console import Progress, clock, say
from mm_lightning.errors import UserError
from mm_lightning.experiments.launchers import Handle, Launcher, Work

LOG_LINES = 8
"""Lines of a failed run's log that are shown."""


@dataclass
class Outcome:
    """The names of the runs of a sweep that finished, and of those that failed."""

    finished: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def execute(works: dict[str, Work], launcher: Launcher, poll_seconds: float = 0.5) -> Outcome:
    """Train all runs that are not finished.

    Args:
        works: the runs by name, in the order in which they start.
        launcher: starts them.
        poll_seconds: seconds between two polls.

    Raises:
        KeyboardInterrupt: after every run was stopped (or left to the queue).
    """
    outcome = Outcome(finished=[name for name, work in works.items() if work.finished()])
    waiting = deque(name for name in works if name not in outcome.finished)
    active: dict[str, Handle] = {}
    watch = Watch(works, len(outcome.finished))
    try:
        while waiting or active:
            while waiting and len(active) < launcher.slots:
                name = waiting.popleft()
                try:
                    active[name] = launcher.start(works[name])
                except UserError as error:  # the others can still be started
                    outcome.failed.append(name)
                    watch.refused(name, str(error))
                else:
                    watch.started(name)
            for name, handle in list(active.items()):
                status = handle.poll()
                if status is None:
                    continue
                del active[name]
                if status == 0 and works[name].finished():
                    outcome.finished.append(name)
                    watch.ended(name)
                else:
                    outcome.failed.append(name)
                    works[name].failure.write_text(f"{status}\n", encoding="utf-8")
                    watch.failed(name, status)
            watch.look(active)
            time.sleep(poll_seconds)
    except KeyboardInterrupt:
        watch.close()
        say(f"interrupted: {launcher.leaving}; the same command goes on")
        raise
    finally:
        for handle in active.values():
            handle.stop()
        for handle in active.values():
            handle.wait()
        watch.close()
    return outcome


class Watch:
    """The live progress of all runs: bars in a terminal, elsewhere lines at start and end and each minute.

    Args:
        works: the runs by name.
        done: number of runs that were finished before.
    """

    def __init__(self, works: dict[str, Work], done: int) -> None:
        self.works = works
        self._begin: dict[str, float] = {}
        self._ended = done
        self._bar = Progress("runs", len(works), done)
        self._parts: dict[str, Progress] = {}

    def started(self, name: str) -> None:
        """Show that a run was started or queued."""
        self._begin[name] = time.monotonic()
        self._parts[name] = self._bar.part(f"  {name}", self.works[name].steps)
        self._say(f"start {name}")

    def ended(self, name: str) -> None:
        """Show that a run has finished, with its validation loss."""
        self._remove(name)
        loss = self.works[name].latest().get("validation/loss")
        shown = "" if loss is None else f"  validation loss {loss:.4f}"
        self._say(f"done  {name}{shown}  in {clock(time.monotonic() - self._begin[name])}")

    def failed(self, name: str, status: int) -> None:
        """Show that a run has failed, with the end of its log."""
        self._remove(name)
        log = self.works[name].folder / "log.txt"
        lines = tail(log, LOG_LINES)
        self._say(f"FAILED {name} (exit status {status}); the end of {log}:\n" + "\n".join(f"    {x}" for x in lines))

    def refused(self, name: str, why: str) -> None:
        """Show that a run could not be started."""
        self._ended += 1
        self._say(f"FAILED {name}: {why}")

    def look(self, active: dict[str, Handle]) -> None:
        """Update the progress of the active runs."""
        for name in active:
            metrics, steps = self.works[name].latest(), self.works[name].steps
            step = int(metrics.get("step", 0))
            text = f"step {step}/{steps}" + (f"  loss {metrics['train/loss']:.4f}" if "train/loss" in metrics else "")
            if speed := metrics.get("train/tokens_per_second"):
                rest = (steps - step) * metrics["train/tokens"] / max(step, 1) / speed
                text += f"  {speed:,.0f} tokens/s  {clock(rest)} to go"
            self._parts[name].update(step, text)

    def close(self) -> None:
        """Take the bars away."""
        self._bar.close()

    def _remove(self, name: str) -> None:
        self._ended += 1
        self._parts.pop(name).close()
        self._bar.update(self._ended)

    def _say(self, text: str) -> None:
        say(f"[{self._ended}/{len(self.works)}] {text}")


def tail(path: Path, count: int) -> list[str]:
    """Return the last lines of a text file that are not empty."""
    if not path.is_file():
        return ["(it has no log)"]
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 16384))
        text = file.read().decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()][-count:]
