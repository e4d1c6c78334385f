"""Training runs that can be killed: forked from a server that has imported everything, they start at once."""

import json
import multiprocessing
import os
import random
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["mm_lightning.training.cli", "deepspeed"])


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def one_rank(rank: int, world_size: int, port: int, args: list[str], log: str, hook: Callable | None) -> None:
    """One process of a run, as a launcher would start it."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    if world_size > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world_size}
        places |= {"LOCAL_WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in places.items()} | {"TORCHELASTIC_RUN_ID": "chaos"}
        from lightning.fabric.utilities.rank_zero import rank_zero_only

        rank_zero_only.rank = rank  # which was taken from the environment at its import
    if hook is not None:
        hook()
    from mm_lightning.cli import main

    status = main(args)
    sys.stdout.flush()
    os._exit(status)


class Run:
    """A training run in processes of its own.

    Args:
        args: of `mm`.
        log: the file that takes what it prints.
        world_size: processes.
        hook: called in each process before it begins.
    """

    def __init__(self, args: list[str], log: Path, world_size: int = 1, hook: Callable | None = None) -> None:
        port = free_port()
        parts = [(rank, world_size, port, args, str(log), hook) for rank in range(world_size)]
        self.processes = [CONTEXT.Process(target=one_rank, args=part) for part in parts]
        self.log = log
        for process in self.processes:
            process.start()

    def alive(self) -> bool:
        """Whether any process lives."""
        return any(process.is_alive() for process in self.processes)

    def kill(self, ranks: list[int] | None = None) -> None:
        """kill -9 of some processes, or of all; those that are left have a while to notice."""
        for rank in range(len(self.processes)) if ranks is None else ranks:
            self.processes[rank].kill()
        deadline = time.monotonic() + 10
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in self.processes:
            process.kill()
            process.join()

    def wait(self, timeout: float = 300) -> list[int | None]:
        """The exit statuses."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(deadline - time.monotonic(), 0.1))
        if self.alive():
            self.kill()
            raise TimeoutError(f"a run did not end: {self.log.read_text()[-3000:]}")
        return [process.exitcode for process in self.processes]

    def finish(self, timeout: float = 300) -> None:
        """Waits for a run that has to end well."""
        statuses = self.wait(timeout)
        assert set(statuses) == {0}, f"{statuses}: {self.log.read_text()[-3000:]}"


def losses(folder: Path) -> dict[int, float]:
    """The loss of each step; every line of the file has to be whole."""
    path = folder / "metrics.jsonl"
    lines = map(json.loads, path.read_text().splitlines()) if path.is_file() else ()
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def assert_same_losses(killed: Path, calm: Path, kills: int) -> None:
    """Every loss is the undisturbed run's, bit for bit; a kill between saving a step and logging it loses its line."""
    found, wanted = losses(killed), losses(calm)
    assert found == {step: loss for step, loss in wanted.items() if step in found}
    assert len(wanted) - kills <= len(found)


def kill_until(
    args: list[str],
    folder: Path,
    log: Path,
    world_size: int,
    kills: int,
    seed: int,
    seconds: float = 0,
    pauses: tuple[float, float] | None = None,
    hook: Callable | None = None,
) -> int:
    """Kills a run again and again after a few steps, at random moments, and at last lets it end.

    Args:
        args: of `mm fit`, without --resume.
        folder: its run folder.
        log: takes what all of its lives print.
        world_size: processes.
        kills: how often at least.
        seed: of the moments.
        seconds: go on for so long at least.
        pauses: the shortest and the longest life in seconds; without, a life lasts a few steps.
        hook: called in each process that is to be killed, before it begins.

    Returns:
        how often it was killed.
    """
    draw = random.Random(seed)
    begin, done = time.monotonic(), 0
    while done < kills or time.monotonic() - begin < seconds:
        run = Run([*args, "--resume"] if has_checkpoint(folder) else args, log, world_size, hook)
        before, wanted = entries(folder), draw.randrange(3)
        deadline = time.monotonic() + 120
        while run.alive() and entries(folder) < before + wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        life = draw.uniform(*pauses) if pauses else draw.random() * draw.choice([0.02, 0.1, 0.4])
        ends = time.monotonic() + life
        while run.alive() and time.monotonic() < ends:
            time.sleep(min(0.05, life))
        if not run.alive():
            run.finish()  # it came to its end: a failure otherwise
            return done
        alone = draw.random() < 0.3
        run.kill([draw.randrange(world_size)] if alone else None)
        done += 1
    Run([*args, "--resume"] if has_checkpoint(folder) else args, log, world_size).finish(timeout=300 + 2 * seconds)
    return done


def entries(folder: Path) -> int:
    """How many lines of metrics there are."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def has_checkpoint(folder: Path) -> bool:
    """Whether a whole checkpoint can be expected."""
    return any((folder / "checkpoints").glob("*.ckpt"))


def same_state(one: Path, other: Path) -> None:
    """Asserts that two checkpoints hold the same weights and optimiser state, bit for bit."""
    from mm_lightning.checkpoint import weights_only_loading

    files = [p.relative_to(one) for p in sorted(one.rglob("*.pt"))] if one.is_dir() else [Path()]
    for name in files:
        with weights_only_loading(one):
            states = [torch.load(folder / name, map_location="cpu") for folder in (one, other)]
        found, wanted = ({**tensors(state)} for state in states)
        assert found.keys() == wanted.keys()
        assert found
        different = [key for key in found if not torch.equal(found[key], wanted[key])]
        assert not different, f"{name}: {different[:5]}"


def tensors(value: object, name: str = "") -> dict[str, torch.Tensor]:
    """All tensors in a nested state, by place."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    )
    return {place: x for key, child in children for place, x in tensors(child, f"{name}.{key}").items()}
