"""Killed at chosen points of a save, a run goes on from its newest valid checkpoint as if nothing had happened."""

import os
import signal

import forks
import pytest
from harness import assert_same_losses, same_state

import mm_lightning.training.cli  # noqa: F401, of which the forks are then spared the import
from mm_lightning.cli import main


def die_at(step: int, point: str, args: list[str]) -> int:
    """Run a command in this process, which kills -9 itself at a point of saving a step."""
    import torch

    from mm_lightning.checkpoint import checksums, trainer_io

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    write, save, replace, seal = trainer_io.write, torch.save, os.replace, checksums.ChecksumFile.append_checksum
    now = []

    def watched_write(checkpoint, target):
        now[:] = [step] if target.name == f"step={step}.ckpt" else []
        write(checkpoint, target)

    def half(content, file, **options):
        class Half:
            def write(self, data):
                if file.file.tell() > 20_000 and now:
                    file.flush()
                    die()
                return file.write(data)

            def flush(self):
                file.flush()

        save(content, Half() if isinstance(file, checksums.ChecksumFile) else file, **options)

    def sealed(file):
        seal(file)
        if now:
            die()

    def replaced(source, target):
        replace(source, target)
        if now and str(target).endswith({"named": f"step={step}.ckpt", "deleting": ".old.partial"}[point]):
            die()

    trainer_io.write = watched_write
    if point == "half":
        torch.save = half
    elif point == "sealed":
        checksums.ChecksumFile.append_checksum = sealed
    else:
        os.replace = replaced
    return main(args)


@pytest.mark.slow
def test_points_of_a_save(config, tmp_path):
    args, log = config(max_steps=6, keep=1), tmp_path / "log.txt"
    assert main([*args, "--run", str(tmp_path / "calm")]) == 0
    calm, killed = tmp_path / "calm" / "0", tmp_path / "killed" / "0"
    args = [*args, "--run", str(tmp_path / "killed")]
    lives = [(2, "half"), (3, "sealed"), (4, "named"), (5, "deleting")]
    for step, point in lives:
        resume = ["--resume"] if step > 2 else []
        assert forks.one(die_at, step, point, [*args, *resume], log=log) == -signal.SIGKILL
        names = sorted(os.listdir(killed / "checkpoints"))
        assert (
            names
            == {
                "half": ["step=1.ckpt", "step=2.ckpt.partial"],
                "sealed": ["step=2.ckpt", "step=3.ckpt.partial"],
                "named": ["step=3.ckpt", "step=4.ckpt"],
                "deleting": ["step=3.ckpt.old.partial", "step=4.ckpt", "step=5.ckpt"],
            }[point]
        )
    assert forks.one(main, [*args, "--resume"], log=log) == 0
    said = log.read_text()
    assert [said.count(f"resuming {killed}/checkpoints/step={n}.ckpt") for n in range(1, 6)] == [1, 1, 0, 1, 1]
    assert said.count("saving it was cut off") == 3
    assert_same_losses(killed, calm, kills=2)  # those of steps 4 and 5 were not written yet
    assert os.listdir(killed / "checkpoints") == ["step=6.ckpt"]
    same_state(killed / "checkpoints" / "step=6.ckpt", calm / "checkpoints" / "step=6.ckpt")
