"""An in-context task of colors, and a network that answers by rule."""

import torch

from mm_lightning.evaluation.in_context.datasets import Dataset, Example
from mm_lightning.evaluation.in_context.in_context_task import InContext
from mm_lightning.memory.state import NetworkState

WORDS = {"red": ["poppy", "blood", "ruby"], "redish": ["rust", "brick", "clay"], "blue": ["sky", "ink", "sea"]}


def example(word, label):
    return Example(f"thing: {word}", "its colour:", label)


def colours(test=(("wine", "red"), ("bark", "redish"), ("lapis", "blue"), ("cobalt", "blue"))):
    """Three classes with three demonstrations each; one class's name is the beginning of another's."""
    train = tuple(example(word, label) for label, words in WORDS.items() for word in words)
    questions = tuple(example(word, label) for word, label in test)
    return Dataset("colours", "Say the colour.", "thing:", tuple(WORDS), train, questions)


class Colours(InContext):
    """The task of these colours."""

    name = "colours"

    def read(self):
        return colours()


class Scripted(torch.nn.Module):
    """A network of bytes that goes on as a rule says, and counts what goes through it.

    Args:
        rule: the next character of a text.
    """

    def __init__(self, rule):
        super().__init__()
        self.rule, self.tokens, self.calls = rule, 0, 0
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def new_state(self, batch=1, capacity=0, sublinear=None):
        return NetworkState({"said": Said(batch)}, batch, self.unused.device)

    def forward(self, tokens, state, starts=None, logits_to_keep=None):
        self.tokens += tokens.numel()
        self.calls += 1
        said = state.parts["said"]
        state.advance(state.documents(*tokens.shape, starts))
        logits = torch.zeros(*tokens.shape, 258)
        for place in range(tokens.shape[1]):
            said.tokens = torch.cat([said.tokens, tokens[:, place : place + 1]], 1)
            for row, ids in enumerate(said.tokens.tolist()):
                logits[row, place, ord(self.rule(bytes(i for i in ids if i < 256).decode()))] = 20.0
        return logits if logits_to_keep is None else logits[:, -logits_to_keep:]


class Said:
    """All that it remembers: everything."""

    pairs = None

    def __init__(self, batch):
        self.tokens = torch.zeros(batch, 0, dtype=torch.int64)

    def tensors(self, pairs=True):
        return {"tokens": self.tokens}

    def load(self, tensors, length):
        self.tokens = tensors["tokens"]


def answering(answer):
    """A rule that answers the last question of a text."""

    def rule(text):
        question, _, begun = text.rpartition("its colour:")
        whole = f" {answer(question.rpartition('thing: ')[2].strip())}\n"
        return whole[len(begun)] if whole.startswith(begun) and len(begun) < len(whole) else "\n"

    return rule
