"""The one door: `mm`.

Every command is one line of the table below. Training commands go to the LightningCLI through
:mod:`mm_lightning.training.commands`; every other command is a plain typed function whose arguments and docstring are
its options and its help. Nothing heavy is imported before a command is chosen, so `mm --help` answers at once.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from mm_lightning import signals, streams
from mm_lightning.errors import UserError
from mm_lightning.function_command import run_function
from mm_lightning.options import nearest
from mm_lightning.redaction import guard_streams, redact
from mm_lightning.synonyms import command_synonym
from mm_lightning.terminal import display

TRAINING: dict[str, str] = {
    "fit": "train a network, or continue a run (--resume)",
    "validate": "loss, perplexity and bits per byte of a trained network on the validation documents",
    "test": "the same on all validation documents, whatever data.validation_sequences says",
    "predict": "write the loss of every document, as cut at the context, to a file",
}

# command: ("module:function", what it does)
COMMANDS: dict[str, tuple[str, str]] = {
    "data prepare": ("mm_lightning.data.data_commands:prepare", "turn text files into litdata shards and a manifest"),
    "data regbench": (
        "mm_lightning.data.data_commands:regbench",
        "generate the synthetic benchmark of learning in context",
    ),
    "data generate": ("mm_lightning.data.data_commands:generate", "make a data set by a generator of your own"),
    "data facts": ("mm_lightning.data.data_commands:facts", "generate made-up facts with questions about them"),
    "data mqar": ("mm_lightning.data.data_commands:mqar", "generate multi-query associative recall (Zoology)"),
    "data fetch": (
        "mm_lightning.evaluation.fetch:fetch_command",
        "download the public data sets that mm evaluate asks about",
    ),
    "data inspect": (
        "mm_lightning.data.data_commands:inspect",
        "show a manifest, document lengths and decoded samples",
    ),
    "data show": (
        "mm_lightning.training.show_batch:show",
        "show what a step of a run was trained on, or its bad steps",
    ),
    "data verify": ("mm_lightning.data.data_commands:verify", "find missing, truncated or foreign shards"),
    "tokenizer train": ("mm_lightning.data.data_commands:train_tokenizer", "train a byte-level BPE on text files"),
    "cost": (
        "mm_lightning.experiments.cost_command:cost_command",
        "parameters, FLOPs and memory of a config, none allocated",
    ),
    "launch": ("mm_lightning.experiments.launch:launch_command", "train on many nodes: Slurm or torchrun"),
    "sweep": (
        "mm_lightning.experiments.sweep:sweep_command",
        "train all variants and seeds of a sweep file",
    ),
    "evaluate": ("mm_lightning.experiments.evaluate:evaluate_command", "ask trained networks what they can do"),
    "generate": ("mm_lightning.inference.generate_commands:generate_command", "sample text from a run or a checkpoint"),
    "chat": ("mm_lightning.inference.chat:chat_command", "converse with a network that remembers all of it"),
    "remember": (
        "mm_lightning.inference.generate_commands:remember_command",
        "read a document once into a memory file",
    ),
    "inspect": (
        "mm_lightning.inspection.inspect_command:inspect_command",
        "write a web page of what each memory reads",
    ),
    "export": ("mm_lightning.inference.export:export_command", "write a network as a folder that transformers loads"),
    "import": (
        "mm_lightning.inference.import_checkpoint:import_command",
        "turn a v1 checkpoint or a Llama folder into a checkpoint",
    ),
    "checkpoint list": (
        "mm_lightning.checkpoint.checkpoint_commands:list_command",
        "checkpoints with their step, size, age and state",
    ),
    "checkpoint verify": (
        "mm_lightning.checkpoint.checkpoint_commands:verify_command",
        "read checkpoints and compare their checksums",
    ),
    "checkpoint consolidate": (
        "mm_lightning.checkpoint.checkpoint_commands:consolidate_command",
        "write weights, of DeepSpeed's shards too, as one safetensors file",
    ),
    "checkpoint convert": (
        "mm_lightning.checkpoint.checkpoint_commands:convert_command",
        "DeepSpeed's shards in their universal form, for another number of GPUs, or as a plain checkpoint",
    ),
    "checkpoint compare": (
        "mm_lightning.checkpoint.checkpoint_commands:compare_command",
        "which weights of two checkpoints differ, and by how much",
    ),
    "report": ("mm_lightning.experiments.report:report_command", "table, curves and page of a sweep, or of any runs"),
    "benchmark step": (
        "mm_lightning.experiments.benchmark.step:step_command",
        "time training steps, a mosaic against other networks",
    ),
    "benchmark decode": (
        "mm_lightning.experiments.benchmark.decode:decode_command",
        "time prefill and decoding, a mosaic against transformers",
    ),
    "benchmark retrieval": (
        "mm_lightning.experiments.benchmark.retrieval:retrieval_command",
        "time sub-linear reads of the long-term memory, with their error",
    ),
}

PRINTED = {
    *("data inspect", "data show", "data verify", "cost", "generate", "chat"),
    *("checkpoint list", "checkpoint verify", "checkpoint compare"),
}
"""Commands whose result is what they print: without a reader they end, all others go on."""

EXAMPLES = """\
examples:
  mm fit --config configs/quickstart.yaml                       train on the Python standard library, in minutes
  mm fit --config configs/quickstart.yaml --resume              continue that run at its newest checkpoint
  mm fit --config a.yaml --config b.yaml --trainer.devices 2    overlays, then single values
  mm generate --checkpoint runs/quickstart --prompt "import"    sample from the newest run
  mm chat --checkpoint runs/quickstart                          converse with it
  mm evaluate --checkpoint runs/quickstart --tasks loss_by_position    where a longer context breaks it
  mm sweep configs/sweeps/ablation.yaml --jobs 2                all variants and seeds of a sweep, with a report
  mm data prepare --help                                        every option of a command"""


def usage() -> str:
    """Return the text of `mm --help`."""
    rows = [*TRAINING.items(), *((name, text) for name, (_, text) in COMMANDS.items())]
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:<{width}}  {text}" for name, text in rows]
    head = ["usage: mm COMMAND [OPTIONS]", "", "Memory Mosaics v2: train, inspect and use them.", "", "commands:"]
    return "\n".join(
        [
            *head,
            *lines,
            "",
            EXAMPLES,
            "",
            "mm --version prints the version, and which packages differ from the tested ones.",
        ]
    )


def find_command(args: Sequence[str]) -> tuple[str, list[str]]:
    """Split arguments into a command of one or two words and what belongs to it."""
    for words in (2, 1):
        name = " ".join(args[:words])
        if name in COMMANDS or name in TRAINING:
            return name, list(args[words:])
    group = [name for name in COMMANDS if name.split()[0] == args[0]]
    if group:
        from mm_lightning.renamed import MOVED

        if script := MOVED.get(name := " ".join(args[:2])):
            raise UserError(f"`mm {name}` is a script now: python {script}, in a clone of the repository")
        second = nearest(args[1], [name.split()[1] for name in group], 0.6) if len(args) > 1 else None
        if second:
            raise UserError(f"there is no command `mm {name}`: did you mean `mm {args[0]} {second}`?")
        raise UserError(f"`mm {args[0]}` needs one more word: {', '.join('mm ' + name for name in group)}")
    near = (
        command_synonym(args[0])
        or nearest(" ".join(args[:2]), [*TRAINING, *COMMANDS])
        or nearest(args[0], [*TRAINING, *COMMANDS])
    )
    hint = f": did you mean `mm {near}`?" if near else ": `mm --help` lists them"
    raise UserError(f"there is no command {args[0]!r}{hint}")


def load(target: str) -> Callable[..., Any]:
    """Return the function named "module:function"."""
    module, function = target.split(":")
    return getattr(importlib.import_module(module), function)


def slurm_job() -> str | None:
    """Return the Slurm job of this process; None for one of submitit's, which queues its jobs again by itself."""
    if "SUBMITIT_EXECUTOR" in os.environ:
        return None
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}" if task else os.environ.get("SLURM_JOB_ID")


def dispatch(args: Sequence[str]) -> None:
    """Run one command line, given without the program's name."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return
    if args[0] == "--version":
        from mm_lightning.versions import version_text

        print(version_text())
        return
    if len(args) == 2 and args[1] in ("-h", "--help") and any(name.startswith(f"{args[0]} ") for name in COMMANDS):
        rows = {name: text for name, (_, text) in COMMANDS.items() if name.startswith(f"{args[0]} ")}
        width = max(map(len, rows))
        print("\n".join(f"  mm {name:<{width}}  {text}" for name, text in rows.items()))
        return
    name, rest = find_command(args)
    if name in TRAINING and rest in (["--help"], ["-h"]):
        from mm_lightning.training.short_help import short_help

        print(short_help(name, TRAINING[name]))
    elif name in TRAINING:
        rest = ["--help"] if rest in (["--help", "all"], ["-h", "all"]) else rest
        from mm_lightning.training.commands import run_training

        run_training(name, rest, slurm_job())
    elif name in ("cost", "launch"):  # take the options of `mm fit`, so they read them themselves
        load(COMMANDS[name][0])(rest)
    else:
        run_function(name, load(COMMANDS[name][0]), rest)


def prints_its_result(args: Sequence[str]) -> bool:
    """Return whether a command line does nothing that outlasts what it prints."""
    help_options = {"-h", "--help", "--version", "--print_config", "--plan"} & {arg.split("=")[0] for arg in args}
    return not args or bool(help_options) or not PRINTED.isdisjoint((args[0], " ".join(args[:2])))


def replace_unprintable() -> None:
    """Let streams put `?` for characters that terminal or file have no code for, so that printing never fails."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not a notebook's, nor a closed one
            stream.reconfigure(errors="replace")


def first_process_reports() -> bool:
    """Return whether the first process of this machine ends with an error too, mostly the same, and prints it.

    Lightning's other processes are its children, and torchrun ends what is left when one has ended.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        return False
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = os.getppid()
    for _ in range(50):
        time.sleep(0.1)
        if os.getppid() != parent:
            return True
    return False


NAME_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""Errors of the system about names of files that cannot be read or written."""


def shortened(message: str) -> str:
    """Return a message as one line, in which no word is longer than a path can be."""
    words = (word if len(word) <= 512 else f"{word[:60]}...{word[-20:]}" for word in message.split())
    return " ".join(words)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mm`; return the exit status: 0, 2 for a mistake of the user's, 130 when interrupted,
    85 when a signal ended training (the same command, or --resume, goes on), 128 and its number when it ended another
    command, 141 when the reader of a printed result has gone."""
    args = sys.argv[1:] if argv is None else argv
    if (folder := os.getcwd()) not in sys.path:
        sys.path.append(folder)  # classes that YAML names may lie beside it; installed packages win
    streams.guard(needed=prints_its_result(args))
    replace_unprintable()
    guard_streams()
    return streams.finish(run_command(args))


def run_command(args: Sequence[str]) -> int:
    """Run one command line; return its exit status."""
    stuck = (lambda ended: signals.left_before_training(ended, slurm_job())) if trains(args) else None
    with signals.ending(stuck):
        return _run_command(args)


def trains(args: Sequence[str]) -> bool:
    """Return whether a command line is of a training, which goes on after it was ended."""
    return list(args[:1]) == ["fit"] and not any(arg.split("=")[0] == "--plan" for arg in args)


def _run_command(args: Sequence[str]) -> int:
    try:
        dispatch(args)
    except SystemExit as done:  # --help and --print_config end this way
        return done.code if isinstance(done.code, int) else 0
    except UserError as error:
        if not first_process_reports():
            display(f"mm: {redact(shortened(str(error)))}", file=sys.stderr)
        return 2
    except signals.Ended as ended:
        if trains(args):
            return signals.left_before_training(ended, slurm_job())
        print(f"mm: {ended}: ended", file=sys.stderr)
        return 128 + ended.number
    except KeyboardInterrupt:
        print("mm: interrupted", file=sys.stderr)
        return 130
    except streams.OutputLost:
        return streams.CUT_SHORT
    except Exception as error:
        from mm_lightning.versions import mismatched_torchvision

        if "torchvision" in str(error) and (wrong := mismatched_torchvision()):
            print(f"mm: {wrong}", file=sys.stderr)
            return 2
        if isinstance(error, OSError) and error.errno in NAME_ERRORS and error.filename is not None:
            display(f"mm: {redact(shortened(f'{error.filename}: {error.strerror}'))}", file=sys.stderr)
            return 2
        # torch's, imported only by commands that compute; numpy's; torch's on a CPU
        no_memory = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
        if not no_memory and "can't allocate memory" not in str(error):
            raise
        reason = ". ".join(" ".join(str(error).split()).split(". ")[:3])
        print(
            f"mm: {reason}. Take less at once: a smaller batch (data.micro_batch_size, --batch_size), shorter "
            "sequences, activation checkpointing, or networks one after the other (mm benchmark step --apart)",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    # run by its path, it would have transformers.py beside it imported as the package of that name
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != os.path.dirname(os.path.abspath(__file__))]
    sys.exit(main())
