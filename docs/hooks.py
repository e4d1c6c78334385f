"""Generate the command reference while the site is built."""

from __future__ import annotations

import io
from contextlib import redirect_stdout, suppress
from typing import Any

from mkdocs.structure.files import File, Files


def help_of(name: str) -> str:
    """Return what `mm NAME --help` prints, with the options of all tasks."""
    from mm_lightning.cli import main

    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        main([*name.split(), "--help", *(["all"] if name == "evaluate" else [])])
    return text.getvalue().strip()


def on_files(files: Files, config: Any) -> Files:
    """Add commands.md: every command with its help, from the program itself."""
    from mm_lightning.cli import COMMANDS, TRAINING

    pages = ["# Commands", "Every command of `mm` with its help, generated from the program."]
    for name in [*TRAINING, *COMMANDS]:
        pages.append(f"## mm {name}\n\n```text\n{help_of(name)}\n```")
    files.append(File.generated(config, "commands.md", content="\n\n".join(pages) + "\n"))
    return files
