"""`mm chat`: read turns and commands from a terminal or a pipe, and print the answers."""

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
    r"""Chat with a trained network, which remembers the whole conversation.

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
        conversation = Conversation(network, tokenizer, chosen, turns, max_new_tokens, sublinear(read_budget))
        if memory is not None:
            conversation.load(memory)
        read_turns(conversation)


def read_turns(conversation: Conversation) -> None:
    """Read turns and commands from standard input until it ends."""
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
                if not run_chat_command(conversation, line):
                    return
            else:
                print_answer(conversation, line.removeprefix("/") if line.startswith("//") else line)
        except UserError as error:
            say(f"mm: {error}", stderr=True)
        except Ended:
            raise
        except KeyboardInterrupt:
            say("interrupted: nothing was read", stderr=True)


def print_answer(conversation: Conversation, text: str) -> None:
    """Print the answer to a turn as it is generated; ctrl-C ends it after the current token."""
    with calling_on_ctrl_c(conversation.interrupt):
        for piece in conversation.answer(text):
            display(piece, end="", flush=True)
    display("", flush=True)


@contextlib.contextmanager
def calling_on_ctrl_c(action: Callable[[], None]) -> Iterator[None]:
    """Context manager in which ctrl-C calls `action` instead of raising KeyboardInterrupt."""
    before = listen([signal.SIGINT], lambda *_: action())
    try:
        yield
    finally:
        restore(before)


def run_chat_command(conversation: Conversation, line: str) -> bool:
    """Run a command such as `/save FILE`; return False for `/quit`."""
    name, _, value = line[1:].strip().partition(" ")
    value = value.strip()
    if name in ("quit", "exit"):
        return False
    if name in ("read", "save", "load") and not value:
        raise UserError(f"/{name} needs a file: /{name} FILE")
    if name == "help":
        display(HELP)
    elif name == "read":
        tokens = conversation.encode(read_document(value))
        with Progress("reading", len(tokens)) as bar:
            conversation.read(tokens, bar.advance)
    elif name == "save":
        file, overwrite = value.removesuffix(" --overwrite").strip(), value.endswith(" --overwrite")
        conversation.save(check_output(file, overwrite, kind=MEMORY))
    elif name == "load":
        conversation.load(value)
    elif name == "reset":
        conversation.reset()
    elif name == "set":
        set_option(conversation, value)
    elif name == "stats":
        state = conversation.reader.state
        say(f"{state.length:,} token{'' if state.length == 1 else 's'} remembered in {state.bytes / 1e6:.1f} MB")
    else:
        raise UserError(f"there is no command /{name}: /help lists them")
    return True


def set_option(conversation: Conversation, words: str) -> None:
    """Set an option, as in `temperature 0.7`; without words, print all of them."""
    settings = {**dataclasses.asdict(conversation.sampling), "max_new_tokens": conversation.max_new_tokens}
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
        conversation.max_new_tokens = value
    else:
        conversation.sampling = dataclasses.replace(conversation.sampling, **{name: value})
