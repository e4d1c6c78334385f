"""Words of a command line, and what is said of those that do not fit."""

from typing import Literal

import pytest
from jsonargparse import ArgumentParser

from mm_lightning.cli import main
from mm_lightning.errors import UserError
from mm_lightning.function_command import function_parser, run_function
from mm_lightning.options import name_words, option_error, word_lists
from mm_lightning.synonyms import SYNONYMS
from mm_lightning.training.parser_errors import explain_parser_error

Kind = Literal["ivf", "hnsw"]


def test_lists_take_words():
    def command(checkpoint: list[str], stop: "str | list[str] | None" = None, number: int = 1):
        """A command."""

    assert word_lists(command, ["--checkpoint", "a", "b", "--number", "2"]) == [
        '--checkpoint=["a", "b"]',
        "--number",
        "2",
    ]
    assert word_lists(command, ["--checkpoint", "a"]) == ['--checkpoint=["a"]']
    assert word_lists(command, ["--checkpoint", '["a", "b"]']) == ['--checkpoint=["a", "b"]']
    assert word_lists(command, ["--stop", "#"]) == ['--stop=["#"]']
    assert word_lists(command, ["--stop", "END", "STOP"]) == ['--stop=["END", "STOP"]']
    assert word_lists(command, name_words(command, ["a", "b", "--number=2"])) == [
        '--checkpoint=["a", "b"]',
        "--number=2",
    ]
    assert name_words(command, ["a"]) == ['--checkpoint=["a"]']


def test_lists_of_numbers_and_of_choices_take_words():
    def command(layers: "list[int]" = (), contexts: "list[int] | int | None" = None, index: "list[Kind]" = ()):
        """A command."""

    assert word_lists(command, ["--layers", "0", "5", "--contexts", "32"]) == ["--layers=[0, 5]", "--contexts=[32]"]
    assert word_lists(command, ["--layers", "[0, 5]", "--index", "[]"]) == ["--layers=[0, 5]", "--index=[]"]
    assert word_lists(command, ["--index", "ivf", "hnsw"]) == ['--index=["ivf", "hnsw"]']


@pytest.mark.parametrize("text", ["# A title", "null", "~", "&a"])
def test_a_text_is_read_as_it_is_typed(text, capsys):
    """YAML makes nothing of these, and nothing is what a text that may be left out is by default."""
    assert main(["inspect", "nowhere", "--prompt", text]) == 2
    assert capsys.readouterr().err.startswith("mm: there is no checkpoint or run folder nowhere: ")


def test_a_command_line_leaves_nothing_to_the_next():
    """They share a parser."""
    seen = []

    def command(names: "list[str] | None" = None, number: int = 1, text: "str | None" = None):
        """A command."""
        seen.append((names, number, text))

    parser = function_parser("command", command)
    for words in (["--names", "b", "c", "--names", "d"], ["--number", "3", "--text", "e"]):
        run_function("command", command, words)
        with pytest.raises(UserError):
            run_function("command", command, [*words, "--number", "few"])
        run_function("command", command, [])
    assert seen == [(["b", "c", "d"], 1, None), (None, 1, None), (None, 3, "e"), (None, 1, None)]
    assert function_parser("command", command) is parser


def test_a_list_that_is_given_again_is_added_to(capsys):
    def command(checkpoint: list[str], stop: "str | list[str] | None" = None, layers: "list[int]" = (), n: int = 0):
        """A command."""
        print(checkpoint, stop, layers, n)

    def told(args: str) -> str:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_function_arguments(command, as_group=False)
        command(**parser.parse_args(word_lists(command, name_words(command, args.split()))))
        return capsys.readouterr().out.strip()

    assert told("a --stop . --stop ?") == "['a'] ['.', '?'] () 0"
    assert told('a --checkpoint b --stop=["A","B"] --stop=C --layers 1 2 --layers 3 --n 1 --n 2') == (
        "['a', 'b'] ['A', 'B', 'C'] [1, 2, 3] 2"
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("generate", "generate: required, but missing: --checkpoint. `mm generate --help` explains every option"),
        (
            "generate --checkpoint",
            "generate: --checkpoint needs a value (one that begins with -: --checkpoint=-x)",
        ),
        ("generate x --temperature hot", "generate: --temperature takes a number, got hot"),
        ("generate x --top_k 1.5", "generate: --top_k takes a whole number, got 1.5"),
        ("generate x --overwrite maybe", "generate: --overwrite takes true or false, got maybe"),
        ("generate x --prompt two words", "generate: 'words' belongs to no option: quote a value that holds spaces"),
        ("export x --output y --dtype half", "export: --dtype takes one of float32, bfloat16, got half"),
        ("sweep x --settings y", "sweep: --settings takes keys and values, as in {key: value}, got y"),
        ("inspect x --layers a 2", "inspect: --layers takes whole numbers, got ['a', 2]"),
        ("benchmark retrieval x --index a", "benchmark retrieval: --index takes some of ivf, hnsw, got ['a']"),
    ],
)
def test_what_is_wrong_with_options(args, message, capsys):
    assert main(args.split()) == 2
    assert capsys.readouterr().err == f"mm: {message}\n"


def test_a_message_without_words_for_it_is_passed_on():
    assert option_error('Parser key "a":\n  Something new', "chat", []) == 'chat: Parser key "a": Something new'


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lr", "--model.learning_rate"),
        ("model.lr", "--model.learning_rate"),
        ("batch_size", "--data.global_batch_size"),
        ("per_device_train_batch_size", "--data.micro_batch_size"),
        ("epochs", "--trainer.max_epochs"),
        ("optimizer", "--model.optimizer"),
        ("lr_scheduler", "--model.schedule"),
        ("seed", "--seed_everything"),
        ("gpus", "--trainer.devices"),
        ("n_layers", "--model.network.layers"),
        ("hidden-size", "--model.network.dim"),
        ("n_heads", "--model.network.heads"),
        ("seq_len", "--data.context_length"),
        ("wd", "--model.weight_decay"),
        ("steps", "--trainer.max_steps"),
        ("precision", "--trainer.precision"),
        ("output_dir", "--run"),
        ("resume_from_checkpoint", "--resume"),
    ],
)
def test_other_programs_names_of_training_options(typed, meant):
    known = ["model", "data", "trainer", "run", "resume", "seed_everything", "model.network", *SYNONYMS]
    message = explain_parser_error(f"unrecognized arguments: --{typed}", [], [k for k in known if "network." not in k])
    assert message.startswith(f"unknown option --{typed}: ")
    assert meant in message


def test_other_programs_names_of_a_commands_options(capsys):
    assert main(["generate", "x", "--max_length", "3"]) == 2
    assert capsys.readouterr().err == "mm: mm generate has no option --max_length: did you mean --max_new_tokens?\n"
    assert main(["sweep", "x", "--workers", "3"]) == 2
    assert "did you mean --jobs?" in capsys.readouterr().err
