"""Turns with a network that remembers them, in Python and through standard input."""

import io
import os
import signal

import pytest
import torch
from byte_networks import build
from reciting_network import Recites
from spaced_tokenizers import spaced_tokenizer

from mm_lightning.errors import UserError
from mm_lightning.inference import conversation
from mm_lightning.inference.chat import read_turns
from mm_lightning.inference.conversation import Conversation, Turns
from mm_lightning.inference.generate import read_prompts
from mm_lightning.inference.sampling import Sampling

DIALOGUE = Turns("\nUser: {}", "\nBot:", ["\nUser:"])
SCRIPT = "\nUser: hi\nBot: hello\nUser: more {}?\nBot: no → yes\nUser: end"


def document(talk):
    return talk.tokenizer.decode(talk.reader.documents[0][1:])


def test_what_is_remembered_is_what_was_shown(tokenizer):
    """The stop string is written by the network, not shown, and taken back: the next turn begins with it."""
    talk = Conversation(Recites(SCRIPT), tokenizer, turns=DIALOGUE)
    assert "".join(talk.answer("hi")) == " hello"
    assert document(talk) == "\nUser: hi\nBot: hello"
    assert "".join(talk.answer("more {}?")) == " no → yes"
    assert document(talk) == SCRIPT.removesuffix("\nUser: end")
    assert talk.reader.state.length == len(talk.reader.documents[0])


class Letters(torch.nn.Module):
    """A network that writes the letters a, b and c only."""

    def __init__(self, network):
        super().__init__()
        self.network, self.new_state = network, network.new_state

    def forward(self, tokens, **state):
        logits = self.network(tokens, **state)
        return torch.full_like(logits, -torch.inf).index_copy(-1, torch.arange(97, 100), logits[..., 97:100])


def test_a_taken_back_stop_string_leaves_no_trace(network, tokenizer):
    """Of a real state: what remains is what reading the document gives."""
    begin, sampling = "some text to begin with", Sampling(temperature=1.0, seed=2)
    written = "".join(Conversation(Letters(network), tokenizer, sampling, max_new_tokens=40).answer(begin))
    stop = written[27:30]
    talk = Conversation(Letters(network), tokenizer, sampling, Turns(stop=[stop]), 40)
    shown = written.split(stop)[0]
    assert len(shown) > 3
    assert "".join(talk.answer(begin)) == shown
    talk.read("!")
    again = read_prompts(Letters(network), tokenizer, [begin + shown + "!"])
    assert talk.reader.documents == again.documents
    assert torch.allclose(talk.reader.logits, again.logits, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", ["metaspace", "llama2"])
def test_turns_of_words_with_their_spaces(kind, tmp_path):
    """What is remembered is what was shown, also where a stop string is taken back."""
    words = spaced_tokenizer(kind, tmp_path)
    script = [*words.encode("the river: the"), *words.encode_behind(" old values: the"), *words.encode_behind(" 5.")]
    talk = Conversation(Recites(script, words.eos, words.vocab_size), words, turns=Turns("{}", ":", [":"]))
    assert "".join(talk.answer("the river")) == " the old values"
    assert document(talk) == "the river: the old values"
    assert "".join(talk.answer("")) == " the 5."
    assert document(talk) == "the river: the old values: the 5."


def test_an_interrupted_answer_is_remembered_as_far_as_it_was_shown(tokenizer):
    talk = Conversation(Recites("hello"), tokenizer)
    shown = []
    for piece in talk.answer("h"):
        shown.append(piece)
        if len(shown) == 2:
            talk.interrupt()
    assert shown == ["e", "l"]
    assert document(talk) == "hel"
    assert "".join(talk.answer("")) == "lo"


def test_an_interrupted_reading_leaves_nothing(network, tokenizer):
    talk = Conversation(network, tokenizer)
    talk.read("before")
    talk.reader.together = 5
    before = talk.reader.logits.clone()

    def interrupt(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.read("a text of several chunks", interrupt)
    assert document(talk) == "before"
    talk.read(" and")
    again = read_prompts(network, tokenizer, ["before and"])
    assert torch.allclose(talk.reader.logits, again.logits, atol=1e-9, rtol=0)
    assert not torch.equal(talk.reader.logits, before)


def test_turns_are_checked():
    with pytest.raises(UserError, match=r"needs a \{\}"):
        Turns("User:")
    with pytest.raises(UserError, match="not empty"):
        Turns(stop=[""])


def chat(talk, monkeypatch, *lines):
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
    read_turns(talk)


def test_lines_from_a_pipe(tokenizer, monkeypatch, capsys):
    talk = Conversation(Recites(SCRIPT), tokenizer, turns=DIALOGUE)
    chat(talk, monkeypatch, "hi", "/stats", "more {}?", "/quit", "not read")
    assert capsys.readouterr().out == " hello\n21 tokens remembered in 0.0 MB\n no → yes\n"
    talk = Conversation(Recites("/bin is"), tokenizer)
    chat(talk, monkeypatch, "//bin")
    assert capsys.readouterr().out == " is\n"


def test_commands(network, tokenizer, monkeypatch, capsys, tmp_path):
    file, memory = tmp_path / "a.txt", tmp_path / "a.memory"
    file.write_text("a text to read")
    talk = Conversation(network, tokenizer, Sampling(seed=1), max_new_tokens=5)
    before = [f"/read {file}", f"/save {memory}", "go on", "/set", "/reset", "/stats", f"/load {memory}", "/stats"]
    settings = ["/set temperature 0.5", "/set top_k 3", "/set top_k none", "/set max_new_tokens 2"]
    chat(talk, monkeypatch, *before, *settings, "/help")
    out, err = capsys.readouterr()
    assert err == ""
    assert "temperature 0.8\ntop_k none\n" in out
    assert "\n1 token remembered" in out
    assert "\n15 tokens remembered" in out
    assert "/read FILE" in out
    assert document(talk) == "a text to read"
    assert talk.sampling == Sampling(temperature=0.5, seed=1)
    assert talk.max_new_tokens == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/foo", "there is no command /foo"),
        ("/read", "/read needs a file"),
        ("/read nowhere.txt", "there is no text file nowhere.txt"),
        ("/load nowhere", "there is no memory file nowhere"),
        ("/set heat 3", "there is no setting 'heat'"),
        ("/set top_k 0.5", "needs a whole number"),
        ("/set temperature none", "needs a number"),
        ("/set temperature -1", "temperature takes a number of at least 0"),
        ("/set max_new_tokens 0", "max_new_tokens must be at least 1"),
    ],
)
def test_mistakes_are_said_and_the_conversation_goes_on(network, tokenizer, monkeypatch, capsys, line, message):
    chat(Conversation(network, tokenizer), monkeypatch, line, "/stats")
    out, err = capsys.readouterr()
    assert message in err
    assert err.count("\n") == 1
    assert out.startswith("1 token ")


def test_ctrl_c_ends_an_answer_only(tokenizer, monkeypatch, capsys):
    network = Recites("x" * 1000)
    talk = Conversation(network, tokenizer, max_new_tokens=900)
    calls = []

    def pressed(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return Recites.forward(network, *args, **kwargs)

    monkeypatch.setattr(network, "forward", pressed)
    before = signal.getsignal(signal.SIGINT)
    chat(talk, monkeypatch, "x", "/stats")
    shown, stats = capsys.readouterr().out.splitlines()
    assert shown == "x" * len(shown)
    assert 1 <= len(shown) < 5
    assert stats.startswith(f"{len(shown) + 2} tokens")
    assert signal.getsignal(signal.SIGINT) is before


def test_every_answer_has_random_numbers_of_its_own(tokenizer, monkeypatch):
    numbers = []
    sampler = conversation.Sampler
    monkeypatch.setattr(conversation, "Sampler", lambda *a: numbers.append(a[2]) or sampler(*a))
    talk = Conversation(build("v2"), tokenizer, max_new_tokens=1)
    for turn in "abc":
        list(talk.answer(turn))
    talk.reset()
    list(talk.answer("a"))
    assert numbers == [[0], [1], [2], [0]]
