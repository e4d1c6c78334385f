"""A run that is killed every 20 to 60 seconds for half an hour ends bit-identical to the undisturbed one.

`pytest -m soak -s --soak_minutes 30`, with `--soak_log PATH` for a summary to keep.
"""

import time

import pytest
from harness import Run, assert_same_losses, kill_until, same_state

BATCH_SECONDS = 0.1  # two make a step


def slowly() -> None:
    """Makes batches last at least so long, so that half an hour of kills is worth a few minutes undisturbed."""
    from mm_lightning.training.module import LanguageModule

    step = LanguageModule.training_step

    def training_step(*args):
        time.sleep(BATCH_SECONDS)
        return step(*args)

    LanguageModule.training_step = training_step


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
        f"{steps} steps; weights, optimiser state and losses bit-identical to the undisturbed run\n"
    )
    print(summary)
    if request.config.getoption("--soak_log"):
        lives = [line for line in said.splitlines() if line.startswith(("resuming", "removed", "passing over"))]
        with open(request.config.getoption("--soak_log"), "a", encoding="utf-8") as file:
            file.write("\n".join([summary, *lives, ""]))
