"""`mm chat`: the terminal's side of a conversation."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

from mm_lightning.console import Progress, say
from mm_lightning.errors import UserError
from mm_lightning.inference.generate_commands import sublinear
from mm_lightning.inference.sampling import Sampling
from mm_lightning.inference.text import unescape
from mm_lightning.outputs import MEMORY, check_output
from mm_lightning.ranges import Budget, Count, Name, Place, Text
from mm_lightning.signals import Ended, listen, restore
from mm_lightning.terminal import display
from mm_lightning.text_files import MARK, read_document

if TYPE_CHECKING:
    from mm_lightning.inference.conversation import Conversation

HELP = """\
What you type is read, and the network goes on from it. Everything is remembered, and read only once.
  /read FILE         read a text file into the memory
  /save FILE         write the memory to a file; /save FILE --overwrite in the place of another memory
  /load FILE         forget everything but the memory of a file
  /reset             forget everything
  /set NAME VALUE    set temperature, top_k, top_p, min_p, repetition_penalty, seed or max_new_tokens (none: not at all)
  /stats             what is remembered
  /quit              leave (or ctrl-D)
ctrl-C ends an answer. A turn that begins with a slash is typed with two."""


def chat_command(
    checkpoint: Place,
    memory: Place | None = None,
    user: Text = "{}",
    answer: Text = "",
    stop: Text | list[Text] | None = None,
    max_new_tokens: Count = 200,
    read_budget: Budget | None = None,
    device: Name = "auto",
    **sampling: Annotated[Any, Sampling],
) -> None:
    r"""Write a text in turns with a trained network, which remembers all of it.

    Networks of this project are language models without a chat template: by default the network goes on with the text
    wherever you stop typing. Lines may also come from a pipe. /help lists the commands.

    Args:
        checkpoint: a run folder (its newest valid checkpoint is taken) or a checkpoint.
        memory: a memory file of `mm remember` or /save to begin with.
        user: your turn, {} being what you typed; here and in answer and stop, \n is a line end and \t a tab. For a
            dialogue: --user '\nUser: {}' --answer '\nAssistant:' --stop '\nUser:'.
        answer: what stands before an answer.
        stop: an answer ends before this string, or any of several: --stop END --stop STOP.
        max_new_tokens: tokens of an answer at most.
        read_budget: how many pairs of a long memory are read one by one for each token of an answer, and all others by
            summaries: faster from four times as many on (docs/performance.md). By default all are read one by one.
        device: cpu, cuda, ...; auto takes a GPU if there is one.
    """
    chosen = Sampling(**sampling)
    from mm_lightning.checkpoint import load_network
    from mm_lightning.inference.conversation import Conversation, Turns
    from mm_lightning.inference.generate import check_length, choose_device, inference_on

    check_length(max_new_tokens)
    stops = [stop] if isinstance(stop, str) else stop or []
    turns = Turns(unescape(user), unescape(answer), [unescape(text) for text in stops])
    place = choose_device(device)
    network, tokenizer = load_network(checkpoint, place)
    with inference_on(place):
        talk = Conversation(network, tokenizer, chosen, turns, max_new_tokens, sublinear(read_budget))
        if memory is not None:
            talk.load(memory)
        converse(talk)


def converse(talk: Conversation) -> None:
    """Takes turns and commands from standard input until it ends."""
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (makes input() editable)
        say("/help lists the commands, ctrl-D leaves", stderr=True)
    first = True
    while True:
        try:
            line = input("> " if interactive else "")
            line, first = line.removeprefix(MARK) if first else line, False
        except EOFError:
            return
        except Ended:
            raise
        except KeyboardInterrupt:
            say("\n/quit or ctrl-D leaves", stderr=True)
            continue
        try:
            if line.startswith("/") and not line.startswith("//"):
                if not obey(talk, line):
                    return
            else:
                reply(talk, line.removeprefix("/") if line.startswith("//") else line)
        except UserError as error:
            say(f"mm: {error}", stderr=True)
        except Ended:
            raise
        except KeyboardInterrupt:
            say("interrupted: nothing was read", stderr=True)


def reply(talk: Conversation, text: str) -> None:
    """Prints an answer as it is written."""
    with ending_by_ctrl_c(talk.interrupt):
        for piece in talk.answer(text):
            display(piece, end="", flush=True)
    display("", flush=True)


@contextlib.contextmanager
def ending_by_ctrl_c(end: Callable[[], None]) -> Iterator[None]:
    """Within it, ctrl-C calls `end`: a token that is being read is read to its end."""
    before = listen([signal.SIGINT], lambda *_: end())
    try:
        yield
    finally:
        restore(before)


def obey(talk: Conversation, line: str) -> bool:
    """Does what a line with a slash says; whether to go on."""
    name, _, value = line[1:].strip().partition(" ")
    value = value.strip()
    if name in ("quit", "exit"):
        return False
    if name in ("read", "save", "load") and not value:
        raise UserError(f"/{name} needs a file: /{name} FILE")
    if name == "help":
        display(HELP)
    elif name == "read":
        tokens = talk.encode(read_document(value))
        with Progress("reading", len(tokens)) as bar:
            talk.read(tokens, bar.advance)
    elif name == "save":
        file, overwrite = value.removesuffix(" --overwrite").strip(), value.endswith(" --overwrite")
        talk.save(check_output(file, overwrite, kind=MEMORY))
    elif name == "load":
        talk.load(value)
    elif name == "reset":
        talk.reset()
    elif name == "set":
        set_option(talk, value)
    elif name == "stats":
        length, held = talk.reader.state.length, talk.reader.state.bytes
        say(f"{length:,} token{'' if length == 1 else 's'} remembered in {held / 1e6:.1f} MB")
    else:
        raise UserError(f"there is no command /{name}: /help lists them")
    return True


def set_option(talk: Conversation, words: str) -> None:
    """`/set temperature 0.7`; alone, shows the settings."""
    settings = {**dataclasses.asdict(talk.sampling), "max_new_tokens": talk.max_new_tokens}
    if not words:
        display("\n".join(f"{name} {'none' if value is None else value}" for name, value in settings.items()))
        return
    name, _, text = words.partition(" ")
    if name not in settings:
        raise UserError(f"there is no setting {name!r}: it is one of {', '.join(settings)}")
    try:
        whole = name in ("top_k", "seed", "max_new_tokens")
        optional = name in ("top_k", "top_p", "min_p")
        value: Any = None if optional and text.strip() == "none" else (int if whole else float)(text)
    except ValueError as error:
        raise UserError(f"/set {name} needs a {'whole ' if whole else ''}number, got {text!r}") from error
    if name == "max_new_tokens":
        from mm_lightning.inference.generate import check_length

        check_length(value)
        talk.max_new_tokens = value
    else:
        talk.sampling = dataclasses.replace(talk.sampling, **{name: value})
