"""A run that is disturbed again and again for half an hour ends bit-identical to the undisturbed one.

`pytest -m soak -s --soak_minutes 30`, with `--soak_log PATH` for a summary to keep. About a minute of it is among the
slow tests.
"""

import functools
import os
import subprocess
import time
from collections import Counter

import pytest
from disturbances import KINDS, disturb
from harness import Run, assert_same_losses, kill_until, same_state

BATCH_SECONDS = 0.1  # two make a step


def slowly(seconds: float = BATCH_SECONDS) -> None:
    """Makes batches last at least so long, so that half an hour of kills is worth a few minutes undisturbed."""
    from mm_lightning.training.module import LanguageModule

    step = LanguageModule.training_step

    def training_step(*args):
        time.sleep(seconds)
        return step(*args)

    LanguageModule.training_step = training_step


def apart() -> None:
    """Slowly, and in a session of its own, which can be stopped as a whole."""
    os.setsid()
    slowly(2 * BATCH_SECONDS)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_soak(config, tmp_path, request):
    minutes = request.config.getoption("--soak_minutes")
    # long enough that the run does not come to its end before
    steps = max(int(minutes * 60 / (2 * BATCH_SECONDS)), 60)
    args, log = config(max_steps=steps, keep=3, asynchronous=True), tmp_path / "log.txt"
    killed, calm = tmp_path / "killed" / "0", tmp_path / "calm" / "0"
    begin = time.monotonic()
    args_killed = [*args, "--run", str(killed.parent)]
    kills = kill_until(args_killed, killed, log, 1, 1, 2, 60 * minutes, (20, 60), slowly)
    seconds = time.monotonic() - begin
    Run([*args, "--run", str(calm.parent)], log).finish(timeout=60 * minutes + 600)
    assert seconds > 60 * minutes, "the run came to its end before"
    assert_same_losses(killed, calm, kills)
    last = f"step={steps}.ckpt"
    same_state(killed / "checkpoints" / last, calm / "checkpoints" / last)
    said = log.read_text().replace(f"{killed}/checkpoints/", "")
    cut_off = said.count("saving it was cut off")
    summary = (
        f"{kills} kills in the first {minutes:g} of {seconds / 60:.1f} minutes, {cut_off} of them while saving; "
        f"{steps} steps; weights, optimizer state and losses bit-identical to the undisturbed run\n"
    )
    print(summary)
    if request.config.getoption("--soak_log"):
        lives = [line for line in said.splitlines() if line.startswith(("resuming", "removed", "passing over"))]
        with open(request.config.getoption("--soak_log"), "a", encoding="utf-8") as file:
            file.write("\n".join([summary, *lives, ""]))


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own, which can be filled."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("a file system of its own cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def disturbed(config, folder, disk, minutes, limit, pauses, seed):
    """Disturb a run, compare it with an undisturbed one, and return a summary with a line for each disturbance."""
    steps = int(minutes * 60 / (4 * BATCH_SECONDS)) + 200  # not all are done before the last round is
    watchdog = {"class_path": "Watchdog", "init_args": {"minutes": limit / 60}}
    saving = {"keep": 3, "asynchronous": True, "on_failure": "continue"}
    args = [*config(max_steps=steps, more=[watchdog], **saving), "--data.num_workers", "1"]
    log, mixed, calm = folder / "log.txt", disk / "0", folder / "calm" / "0"
    begin = time.monotonic()
    run = functools.partial(disturb, seconds=60 * minutes, seed=seed, limit=limit, pauses=pauses, hook=apart)
    events = run([*args, "--run", str(mixed.parent)], mixed, log)
    seconds = time.monotonic() - begin
    Run([*args, "--run", str(calm.parent)], log).finish(timeout=60 * minutes + 600)
    counts = Counter(kind for event in events for kind in KINDS if kind in event)
    assert_same_losses(mixed, calm, counts["kill -9"])
    last = f"step={steps}.ckpt"
    same_state(mixed / "checkpoints" / last, calm / "checkpoints" / last)
    summary = (
        f"seed {seed}: {', '.join(f'{counts[kind]} x {kind}' for kind in KINDS)} in {seconds / 60:.1f} "
        f"minutes; {steps} steps; weights, optimizer state and losses bit-identical to the "
        f"undisturbed run"
    )
    print(summary)
    return counts, "\n".join([summary, *events, ""])


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_mixed_soak(config, tmp_path, disk, request):
    minutes = request.config.getoption("--soak_minutes")
    _, text = disturbed(
        config, tmp_path, disk, minutes, limit=30, pauses=(2, 25), seed=request.config.getoption("--soak_seed")
    )
    if request.config.getoption("--soak_log"):
        with open(request.config.getoption("--soak_log"), "a", encoding="utf-8") as file:
            file.write(text)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_short_mixed_soak(config, tmp_path, disk):
    counts, _ = disturbed(config, tmp_path, disk, 0, limit=12, pauses=(0.1, 2), seed=3)
    assert counts.keys() == set(KINDS)
