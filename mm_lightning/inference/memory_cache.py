"""The inference state of a network as a cache of transformers, under both names that its versions give a cache."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.cache_utils import Cache

from mm_lightning.memory.state import NetworkState
from mm_lightning.networks.base import Network

# transformers 5.24 renamed the argument. Exported folders outlive versions: the signature decides.
_RENAMED = "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE, OTHER_NAME = ("cache", "past_key_values") if _RENAMED else ("past_key_values", "cache")
"""The name of the cache in arguments and outputs of this version of transformers, and in other versions."""


class MemoryCache(Cache):
    """The inference state of a batch as a cache of transformers; empty until the first forward pass.

    `copy.deepcopy` forks it, so that several texts continue one prefix; it cannot be cropped.

    Args:
        network: the network whose state it is.
        capacity: tokens to preallocate.
    """

    def __init__(self, network: Network, capacity: int = 0) -> None:
        super().__init__(layers=[])
        self.network, self.capacity = network, capacity
        self.state: NetworkState | None = None

    def begin(self, batch: int) -> NetworkState:
        """Return the state, after creating it for `batch` rows if there is none yet."""
        if self.state is None:
            self.state = self.network.new_state(batch, self.capacity)
        return self.state

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the chosen rows, each any number of times."""
        if self.state is not None:
            capacity = max(self.state.length + 1, self.capacity)
            index = indices.to(next(self.network.parameters()).device)
            self.state = self.state.rows(index, self.network.new_state(len(index), capacity))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Give each beam the state of the beam that it continues."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row, copies next to each other."""
        if self.state is not None:
            self.batch_select_indices(torch.arange(self.batch_size).repeat_interleave(repeats))

    def __deepcopy__(self, memo: dict[int, Any]) -> MemoryCache:
        copied = MemoryCache(self.network, self.capacity)
        copied.state = self.state
        copied.batch_repeat_interleave(1)
        return copied

    def crop(self, tokens_to_remove: int) -> None:
        """Raise a ValueError: an average cannot drop its newest terms."""
        if tokens_to_remove:
            raise ValueError(
                "the state of a memory cannot be cropped: keep copy.deepcopy(cache) of the point to return to "
                "(decoding with an assistant model, which would need this, is not possible)"
            )

    def reset(self) -> None:
        """Empty the cache."""
        self.state = None

    def __len__(self) -> int:
        return self.network.config.layers

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens read so far."""
        return 0 if self.state is None else self.state.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return -1: there is no limit."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return the length and offset of the mask, which covers all tokens."""
        return self.get_seq_length() + query_length, 0

    @property
    def is_linear(self) -> list[bool]:
        """False for every layer: `generate` then skips the tokens of a prompt that were read before."""
        return [False] * len(self)

    @property
    def is_sliding(self) -> list[bool]:
        """False for every layer."""
        return [False] * len(self)

    @property
    def is_dummy(self) -> list[bool]:
        """False for every layer."""
        return [False] * len(self)

    @property
    def batch_size(self) -> int:
        """The number of rows; -1 if the cache is empty."""
        return -1 if self.state is None else len(self.state.tensors()["first"])

    @property
    def is_initialized(self) -> bool:
        """Whether there is a state."""
        return self.state is not None

    @property
    def is_croppable(self) -> bool:
        """False: see :meth:`crop`."""
        return False


def one_cache(arguments: dict[str, Any]) -> Any:
    """Remove the cache from arguments, where it may have either name, and return it; None if there is none.

    Raises:
        ValueError: two are given.
    """
    given = [arguments.pop(name, None) for name in (CACHE, OTHER_NAME)]
    if given[0] is not None and given[1] is not None:
        raise ValueError(f"cache and past_key_values are two names of one argument: give {CACHE} alone")
    return given[0] if given[1] is None else given[1]


def with_both_names(output: Any) -> Any:
    """Return an output whose cache is readable as `cache` and as `past_key_values`."""
    if not hasattr(type(output), OTHER_NAME):
        setattr(output, OTHER_NAME, getattr(output, CACHE, None))
    return output
