"""`mm fit | validate | test | predict`."""

from __future__ import annotations

from mm_lightning.training.cli import TrainingCLI


def run_training(command: str, args: list[str], slurm_job: str | None = None) -> None:
    """Run one training command, which may queue its Slurm job again.

    Raises:
        UserError: for any mistake of the user's.
    """
    if command == "fit" and any(arg.split("=")[0] == "--plan" for arg in args):
        from mm_lightning.training.dry_run import DryRunFit

        DryRunFit(args).run()
    else:
        TrainingCLI(command, args, slurm_job).run()
