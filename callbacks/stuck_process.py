"""End the parent process when it sends no heartbeat, as when it is stuck outside Python.

The Watchdog runs this file as a program of its own, with the standard library alone: no thread of a stuck process
could do it.

    python -I -S stuck_process.py PID LIMIT INTERVAL SIGNAL      (each byte on standard input is a heartbeat)
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time

IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def stopped(process: int) -> bool:
    """Return whether a process is stopped by a signal or a debugger, on systems with /proc."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False


def watch(process: int, limit: float, interval: float, dump: int) -> None:
    """End the parent process after `limit` seconds without a heartbeat; return when it has ended or closed the pipe.

    Only seconds in which this process was awake and the parent was not stopped count.

    Args:
        process: the parent's process id.
        limit: seconds without a heartbeat.
        interval: seconds between two checks.
        dump: the signal at which the parent prints its stacks.
    """
    silent = 0.0
    while silent <= limit:
        ready, _, _ = select.select([0], [], [], interval)
        if os.getppid() != process or (ready and not os.read(0, 4096)):
            return
        if ready:
            silent = 0.0
        elif not stopped(process):
            silent += interval
    with contextlib.suppress(OSError):
        line = f"mm: no heartbeat for {silent:.0f} s (Watchdog): process {process} is stuck outside Python and is "
        os.write(2, f"{line}ended; --resume goes on from the newest checkpoint. Its stacks:\n".encode())
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, dump)
        time.sleep(2)
        os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    watch(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
