"""The options of training commands beside those of trainer, model and data, and the defaults of the trainer."""

from __future__ import annotations

from typing import Annotated, Any

from lightning.pytorch.cli import LightningArgumentParser

from mm_lightning.data import TextDataModule
from mm_lightning.data.generator import GENERATORS, find_generator
from mm_lightning.data.prepare_config import PrepareConfig
from mm_lightning.ranges import Place, Range, Seed, hints, state_ranges
from mm_lightning.training.lightning_internals import parser_options
from mm_lightning.training.module import LanguageModule
from mm_lightning.training.trainer_options import TRAINER_TYPES

DEFAULT_ROOT = "runs/default"

TRAINER_DEFAULTS = {
    # everything is counted in optimization steps, never in epochs
    "max_epochs": -1,
    "check_val_every_n_epoch": None,
    "val_check_interval": 1000,
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    # the streaming loaders divide the data among ranks themselves
    "use_distributed_sampler": False,
}


def every_command(
    seed_everything: Seed = 1,
    run: Place = DEFAULT_ROOT,
    ckpt_path: Place | None = None,
    communication_timeout: Annotated[float, Range(0, 10 * 365 * 86_400, above=True)] = 1800.0,
) -> None:
    """Declare the options of every training command.

    Args:
        seed_everything: Seed of weights, data order and steps.
        run: Where numbered run folders lie, as in runs/quickstart.
        ckpt_path: Checkpoint or run folder: what is evaluated, or with `mm fit` what a new run folder continues.
        communication_timeout: Seconds that a process waits for another, at the start and in every step, before it ends
            the run. Longer than what one process does while the others wait.
    """


def fit(
    plan: Annotated[int, Range(1, 1_000_000)] | None = None,
    gpu_memory: Annotated[float, Range(0, 1_000_000, above=True)] | None = None,
    resume: bool | Place = False,
) -> None:
    """Declare the options of `mm fit`.

    Args:
        plan: Instead of training, check a run on this many devices on this machine, without its GPUs.
        gpu_memory: With --plan: GB of each device, which the run must fit.
        resume: Continue the newest valid checkpoint of `run`, or of the run folder named here, with that run's own
            configuration; configs and options that are given win over it.
    """


def predict(output: Place | None = None, overwrite: bool = False) -> None:
    """Declare the options of `mm predict`.

    Args:
        output: JSON lines to write, one a document; by default predictions.jsonl in the run folder, which is written
            anew.
        overwrite: Replace an existing output.
    """


def add_options(parser: LightningArgumentParser, command: str) -> None:
    """Add the options of a training command to its parser; `--resume` and `--overwrite` may stand alone."""
    for declaration in (every_command, *(one for one in (fit, predict) if one.__name__ == command)):
        parser.add_function_arguments(declaration, as_group=False)
    for option in parser_options(parser):
        if option.dest in ("resume", "overwrite"):
            option.nargs, option.const = "?", True


def option_types() -> dict[str, dict[str, Any]]:
    """Return the types of all options of training commands, with their ranges, by section; "" for no section."""
    return {
        "": hints(every_command) | hints(fit) | hints(predict),
        "trainer": TRAINER_TYPES,
        "model": hints(LanguageModule.__init__),
        "data": hints(TextDataModule.__init__),
        "data.prepare": hints(PrepareConfig),
        **{f"data.{name}": hints(find_generator(name)) for name in GENERATORS},
    }


def state_option_ranges(parser: LightningArgumentParser) -> None:
    """State the ranges of numbers in the help of a training command."""
    for section, types in option_types().items():
        state_ranges(parser_options(parser), {f"{section}.{name}".lstrip("."): hint for name, hint in types.items()})
