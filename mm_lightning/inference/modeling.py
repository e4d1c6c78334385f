"""A network of this package as a causal language model of transformers, with its inference state as cache."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast, ModelOutput

from mm_lightning.inference.configuration import MMLightningConfig
from mm_lightning.inference.memory_cache import CACHE, MemoryCache, one_cache, with_both_names
from mm_lightning.memory.documents import IGNORE_INDEX, Documents
from mm_lightning.networks.base import Network


class MMLightningForCausalLM(PreTrainedModel, GenerationMixin):
    """A causal language model of transformers around any network of mm-lightning.

    Args:
        config: the exported configuration.
    """

    config_class = MMLightningConfig
    base_model_prefix = "network"
    _no_split_modules = ["MosaicBlock", "TransformerBlock"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _supports_sdpa = True  # the default of transformers; networks choose their attention backend themselves

    def __init__(self, config: MMLightningConfig) -> None:
        super().__init__(config)
        self.network = config.network_config().build()
        if self.network.config.tied:
            self._tied_weights_keys = {"network.classifier.weight": "network.embedding.weight"}
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        reset = getattr(module, "reset_parameters", None)
        if not callable(reset) or isinstance(module, Network):  # a network's modules are initialized one by one
            return
        # Only parameters that were in no file are to be initialized; older versions call this for every module.
        loaded = [p for p in module.parameters(recurse=False) if getattr(p, "_is_hf_initialized", False)]
        values = [p.detach().clone() for p in loaded]
        reset()
        with torch.no_grad():
            for parameter, value in zip(loaded, values, strict=True):
                parameter.copy_(value)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether blocks are recomputed in the backward pass; `gradient_checkpointing_enable` sets it."""
        return bool(self.network.activation_checkpointing)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        self.network.activation_checkpointing = value

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding."""
        return self.network.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding."""
        self.network.embedding = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        """Return the classifier."""
        return self.network.classifier

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the classifier."""
        self.network.classifier = new_embeddings  # type: ignore[assignment]

    def new_cache(self, capacity: int = 0) -> MemoryCache:
        """Return an empty cache.

        Args:
            capacity: tokens to preallocate.
        """
        return MemoryCache(self.network, capacity)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: MemoryCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        position_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache: MemoryCache | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> CausalLMOutputWithPast | tuple:
        """Return logits, loss and cache. Padding must be on the left; without a cache it may be on the right.

        Args:
            input_ids: (B, T) int64, the tokens after those that the cache has read.
            attention_mask: (B, T); with a cache (B, tokens read before + T): 0 on padding, else 1.
            past_key_values: the cache of earlier calls; another name of `cache`.
            labels: (B, T), token ids or -100: the loss is that of predicting each from the tokens before it, the mean
                over the labels of this call; in training mode with the load-balancing loss of a mixture of experts.
            use_cache: return the cache. By default where no gradient or loss is wanted.
            logits_to_keep: logits of the last so many tokens only (0: all), or of the tokens with these indices.
            return_dict: False for a tuple.
            position_ids: (B, T) or (1, T): may be left out, and must count as the network itself does.
            output_attentions: must not be True: the weights of reads are not kept.
            output_hidden_states: must not be True, likewise.
            cache: the cache of earlier calls.
            inputs_embeds: (B, T, d), embeddings in the place of input_ids.

        Raises:
            ValueError: the mask, the cache or the positions do not fit, or an unsupported output is requested.
        """
        cache = one_cache({"cache": cache, "past_key_values": past_key_values})
        check_supported(output_attentions, output_hidden_states, cache)
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        if inputs is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("give input_ids or inputs_embeds, one of the two")
        if position_ids is not None:
            check_positions(position_ids, attention_mask, inputs.shape[1])
        if use_cache is None:
            inference = labels is None and not torch.is_grad_enabled()
            use_cache = inference and (attention_mask is None or padded_left(attention_mask))
        if cache is None and use_cache:
            cache = self.new_cache()
        keep = logits_to_keep if isinstance(logits_to_keep, int) and logits_to_keep and labels is None else None
        targets = None if labels is None else F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX).to(inputs.device)
        balance_mask = None if targets is None else targets != IGNORE_INDEX
        x, balance = self._hidden_states(inputs, attention_mask, cache, keep, balance_mask)
        logits = self.network.classifier(x)
        loss = None
        if targets is not None:
            targets = targets.to(logits.device).flatten()
            loss = F.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=IGNORE_INDEX)
            loss = self.network.total_loss(loss, balance)
        if isinstance(logits_to_keep, Tensor):
            logits = logits[:, logits_to_keep]
        elif keep is None and logits_to_keep:
            logits = logits[:, -logits_to_keep:]
        named: dict[str, Any] = {CACHE: cache}
        output = CausalLMOutputWithPast(loss=loss, logits=logits, **named)
        return output.to_tuple() if return_dict is False else with_both_names(output)

    def _hidden_states(
        self,
        inputs: Tensor,
        mask: Tensor | None,
        cache: MemoryCache | None,
        logits_to_keep: int | None,
        balance_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the last hidden states of tokens or embeddings, and the load-balancing loss; update the cache."""
        new = inputs.shape[1]
        starts = None if mask is None else document_starts(mask, new)
        if cache is None:
            documents = None if starts is None else Documents.from_starts(starts)
            return self.network.hidden_states(inputs, documents, None, None, None, logits_to_keep, balance_mask)
        if mask is not None and new > 1 and not padded_left(mask):
            raise ValueError("with a cache, padding must be on the left: set padding_side of the tokenizer to left")
        read = cache.get_seq_length()
        if mask is not None and mask.shape[-1] != read + new:
            raise ValueError(
                f"attention_mask must cover the tokens in the cache and the new ones, {read} + {new}, "
                f"got {mask.shape[-1]}: do not give the text in the cache again"
            )
        state = cache.begin(inputs.shape[0])
        return self.network.hidden_states(inputs, None, None, state, starts, logits_to_keep, balance_mask)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as every model of transformers does; the cache may be given and returned by either of its names."""
        cache = one_cache(kwargs)
        tokens, mask = kwargs.get("input_ids", args[0] if args else kwargs.get("inputs")), kwargs.get("attention_mask")
        if cache is not None and tokens is not None and (mask is None or mask.shape == tokens.shape):
            read = cache.get_seq_length()
            if read >= tokens.shape[1]:
                raise ValueError(
                    f"the cache has read {read} tokens and {tokens.shape[1]} are given, which must begin with those: "
                    f"give the whole text, or an attention_mask of the whole text with its new tokens"
                )
        output = super().generate(*args, **kwargs, **({} if cache is None else {CACHE: cache}))
        return with_both_names(output) if isinstance(output, ModelOutput) else output

    @functools.wraps(GenerationMixin.prepare_inputs_for_generation)  # whose signature `generate` asks for inputs_embeds
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Prepare inputs as every model does, without None and the unused arguments of older versions."""
        kwargs[CACHE] = one_cache(kwargs)
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        loops = ("cache_position", "tokenizer")  # of older versions; of stop_strings
        return {name: value for name, value in inputs.items() if value is not None and name not in loops}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # type: ignore[misc]
        if generation_config.use_cache and model_kwargs.get(CACHE) is None:
            model_kwargs[CACHE] = self.new_cache()


def document_starts(mask: Tensor, time: int) -> Tensor | None:
    """Return where a row's text begins among the last T tokens of a (B, ...) mask, (B, T) bool; None if only at 0.

    Raises:
        ValueError: the mask is not of two dimensions, or shorter than the tokens.
    """
    if mask.dim() != 2 or mask.shape[1] < time:
        raise ValueError(
            f"attention_mask must be 0 on padding and else 1, one number a token read so far: "
            f"got {tuple(mask.shape)} for {time} tokens"
        )
    real = mask.bool()
    before = F.pad(real, (1, 0))[:, :-1] if mask.shape[1] == time else real[:, -time - 1 : -1]
    starts = real[:, -time:] & ~before
    if mask.shape[1] == time:
        starts[:, 0] = False  # every row begins there anyway
    return starts if starts.any() else None


def check_supported(attentions: bool | None, hidden_states: bool | None, cache: Any) -> None:
    """Check that a call asks for no outputs that memories do not have, and that its cache is one of theirs.

    Raises:
        ValueError: it does not.
    """
    if attentions:
        raise ValueError("memories do not keep the weights of their reads: leave output_attentions out")
    if hidden_states:
        raise ValueError(
            "hidden states of the blocks are not kept: leave output_hidden_states out (model.network."
            "hidden_states(input_ids) returns the last ones)"
        )
    if isinstance(cache, Cache) and not isinstance(cache, MemoryCache):
        raise ValueError(
            f"a memory's state does not fit a {type(cache).__name__}: leave {CACHE} out, or pass "
            f"model.new_cache() or what an earlier call returned"
        )


def check_positions(positions: Tensor, mask: Tensor | None, time: int) -> None:
    """Check that the positions of T tokens are those that the network counts by itself.

    Raises:
        ValueError: they do not grow by 1 from each token of a text to the next.
    """
    if positions.shape[-1] == time == 1:
        return
    fits = positions.diff() == 1
    if mask is not None:
        real = mask[:, -time:].bool()
        fits = fits | ~(real[:, 1:] & real[:, :-1])
    if positions.shape[-1] != time or not fits.all():
        raise ValueError(
            f"position_ids of {tuple(positions.shape)} for {time} tokens do not count as the network does by itself, "
            f"from attention_mask: leave them out, and give texts that are packed into one row a row each"
        )


def padded_left(mask: Tensor) -> bool:
    """Return whether a (B, ...) mask is 0 before a row's text and nowhere else."""
    real = mask.bool()
    return bool((real[:, 1:] | ~real[:, :-1]).all())
