"""The configuration of every network: its dimensions, and the spans that its memories read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import wraps
from typing import Annotated, Any, Literal, TypeVar

from torch import nn

from mm_lightning.errors import UserError
from mm_lightning.memory.documents import Span
from mm_lightning.ranges import AtLeastTwo, Count, Name, Part, Range, Share, check_fields

Vocabulary = Annotated[int, Range(1, 2**31 - 1)]
Dimension = Annotated[int, Range(1, 2**20)]
Hidden = Annotated[int, Range(1, 2**24)]
Result = TypeVar("Result")
KNOWN = "long", "short", "full"
"""The levels of the papers."""


@dataclass(frozen=True)
class Reach:
    """The pairs that a level of memory reads, as a configuration states it.

    Args:
        delay: how many tokens pass before a pair can be read: m, or [smallest, largest] m of a training step, drawn
            anew for each. Attention with a delay of 1 reads its own position too.
        window: h; the oldest pair that is read is that of h - 1 tokens before. None: all that the delay leaves.
        inference_delay: m at evaluation; the smallest delay by default.
    """

    delay: Count | tuple[Count, Count] = 1
    window: AtLeastTwo | None = None
    inference_delay: Count | None = None

    def __post_init__(self) -> None:
        if isinstance(self.delay, list):
            object.__setattr__(self, "delay", tuple(self.delay))

    @property
    def delays(self) -> tuple[int, int]:
        """The smallest and the largest m of a training step."""
        return (self.delay, self.delay) if isinstance(self.delay, int) else (self.delay[0], self.delay[1])

    def check(self, name: str) -> None:
        """Check the values of the field `name`.

        Raises:
            UserError: the delays are not in order, the window is not above them, or m at evaluation would be ignored.
        """
        check_fields(self, f"{name}.")
        low, high = self.delays
        if low > high:
            raise UserError(f"{name}.delay must be [smallest, largest], got [{low}, {high}]: swap them")
        if high == 1 and self.inference_delay not in (None, 1):
            raise UserError(
                f"{name}.inference_delay is for delays above 1, got {self.inference_delay} with delay {low}: leave it "
                f"out, or train with delay [1, {self.inference_delay}]"
            )
        longest = max(high, self.inference_delay or 0)
        if self.window is not None and self.window <= longest:
            raise UserError(
                f"{name}.window must be above its delay {longest}, got {self.window}: nothing could be read"
            )


@dataclass
class NetworkConfig:
    """The configuration of every network: dimensions, and the spans that its memories (or attentions) read.

    Args:
        vocab_size: tokens of the vocabulary, V.
        layers: blocks, L.
        dim: hidden size, d.
        heads: heads of each memory (or attention), H; must divide dim.
        persistent_dim: hidden size of the persistent memory (the SwiGLU network), f.
        norm_eps: added to the mean square in RMSNorm. Embeddings begin with a mean square of 1/(2d), so keep it small.
        norm: rms, or layer for LayerNorm without bias (v1).
        tied: whether the classifier's weights are the embedding's.
        dropout: share of retrieval weights, and of the outputs of each half-block, dropped in training.
        levels: the contextual memories (or attentions) of a block, whose outputs are concatenated: `long` and `short`,
            `full` (all that came before), any of them, or names that `spans` explains. A level that is not named has
            no parameters.
        short_term_window: h; the short-term memory reads the h-1 pairs t-h+1 .. t-1.
        long_term_delay: [smallest, largest] m of a training step, drawn for each; the long-term memory reads
            the pairs 1 .. t-m.
        inference_delay: m of the long-term memory at evaluation; at least 1, as a memory never reads its own position.
        spans: the pairs that levels with other names read: {middle: {delay: 1, window: 1024}}.
    """

    vocab_size: Vocabulary = 128256
    layers: Annotated[int, Range(1, 10_000)] = 24
    dim: Dimension = 2048
    heads: Dimension = 16
    persistent_dim: Hidden = 6144
    norm_eps: Share = 1e-6
    norm: Literal["rms", "layer"] = "rms"
    tied: bool = False
    dropout: Part = 0.0
    levels: tuple[Name, ...] = ("long", "short")
    short_term_window: AtLeastTwo = 256
    long_term_delay: tuple[Count, Count] = (64, 256)
    inference_delay: Count = 64
    spans: dict[Name, Reach] = field(default_factory=dict)

    bias = False  # of linear maps and norms; a setting of v1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.dim % self.heads:
            raise UserError(
                f"heads must divide dim: {self.heads} heads do not divide dim {self.dim}; "
                f"the nearest number of heads that does is {self._nearest_heads()}"
            )
        self._check_spans()

    def _check_spans(self) -> None:
        self.levels = tuple(self.levels)
        self.long_term_delay = (self.long_term_delay[0], self.long_term_delay[1])
        low, high = self.long_term_delay
        try:
            self.spans = {name: x if isinstance(x, Reach) else Reach(**x) for name, x in self.spans.items()}
        except TypeError as error:
            raise UserError(f"spans must give names {{delay, window, inference_delay}}, got {self.spans}") from error
        if not self.levels or len(set(self.levels)) != len(self.levels):
            known = ", ".join([*KNOWN, *self.spans])
            raise UserError(f"levels must name one or more of {known}, each once, got {list(self.levels)}")
        for name, reach in self.spans.items():
            if name in KNOWN or not name.isidentifier():
                raise UserError(
                    f"spans takes names of letters and digits other than {', '.join(KNOWN)}, got {name!r}: those are "
                    f"set by long_term_delay, inference_delay and short_term_window"
                )
            if hasattr(nn.ModuleDict(), name):  # in which a block keeps its memories
                raise UserError(f"spans: {name!r} is a name that every module of torch has: call the level otherwise")
            reach.check(f"spans.{name}")
        for level in self.levels:
            if level not in KNOWN and level not in self.spans:
                raise UserError(
                    f"levels names {level!r}, which spans does not define: add spans: {{{level}: {{window: 64}}}}"
                )
        if low > high:
            raise UserError(f"long_term_delay must be [smallest, largest], got [{low}, {high}]: swap them")

    def reach(self, level: str) -> Reach:
        """Return what a level reads, as it is stated."""
        known = {
            "long": Reach(self.long_term_delay, None, self.inference_delay),
            "short": Reach(1, self.short_term_window),
            "full": Reach(),
        }
        return known[level] if level in known else self.spans[level]

    def span(self, level: str, delay: int | None = None) -> Span:
        """Return the pairs that a memory of this level reads: of ages from its delay to h - 1, equation (10).

        Args:
            level: its name.
            delay: m of a level that has one; that of inference by default.
        """
        reach = self.reach(level)
        delay = self._delay(reach, delay)
        return Span(delay, None if reach.window is None else reach.window - delay)

    def _delay(self, reach: Reach, drawn: int | None) -> int:
        """Return the age of the newest pair that is read; a memory never reads its own position."""
        return 1 if reach.delay == 1 else drawn or reach.inference_delay or reach.delays[0]

    def _nearest_heads(self) -> int:
        divisors = (h for h in range(1, self.dim + 1) if self.dim % h == 0)
        return min(divisors, key=lambda h: abs(h - self.heads))

    def to_dict(self) -> dict[str, Any]:
        """Return {class, fields} in plain types, as checkpoints and config.json hold it."""
        given = [field.name for field in fields(self) if field.init]
        values = {name: list(x) if isinstance(x, tuple) else x for name, x in asdict(self).items() if name in given}
        known = type(self)
        package = __name__.rpartition(".")[0]  # not a literal: an exported folder holds a copy of this module
        built_in = known.__module__.startswith(package)
        return {"class": known.__name__ if built_in else f"{known.__module__}.{known.__qualname__}", "fields": values}

    @property
    def head_dim(self) -> int:
        """The head dimension D = d / H."""
        return self.dim // self.heads

    def build(self) -> Any:
        """Build the :class:`Network` with these dimensions, initialized unless the default device is meta."""
        raise TypeError("NetworkConfig has no network of its own: use MemoryMosaicConfig or TransformerConfig")


def once_per_config(count: Callable[..., Result]) -> Callable[..., Result]:
    """Decorate a function of a configuration and hashable values: equal ones are computed once."""
    results: dict[tuple[Any, ...], Result] = {}

    @wraps(count)
    def cached(config: NetworkConfig, *values: Any) -> Result:
        key = type(config), repr(config), *values  # two classes may have one name
        if key not in results:
            results[key] = count(config, *values)
        return results[key]

    return cached
