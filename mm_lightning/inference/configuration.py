"""The configuration of an exported network for transformers: the content of its config.json."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from mm_lightning.errors import UserError
from mm_lightning.networks.config import NetworkConfig
from mm_lightning.networks.config_dict import UnknownNetwork, config_from_dict
from mm_lightning.networks.memory_mosaic import MemoryMosaicConfig


class MMLightningConfig(PretrainedConfig):
    """The configuration of any network of mm-lightning.

    Args:
        network: {"class": "MemoryMosaicConfig", "TransformerConfig" or module.Class, "fields": {...}}: the class and
            fields of the network's own configuration. A field that is missing has its default.
        context_length: tokens of a training sequence; longer ones may be given.
        kwargs: the arguments of every configuration of transformers.

    Raises:
        UserError: the network, or a setting of it, is unknown.
    """

    model_type = "mm_lightning"

    def __init__(self, network: dict[str, Any] | None = None, context_length: int | None = None, **kwargs: Any) -> None:
        network = network or {"class": MemoryMosaicConfig.__name__, "fields": {}}
        try:
            config = config_from_dict(network)
        except UnknownNetwork as unknown:
            raise UserError(
                f"config.json describes {unknown}, which this version of mm-lightning does not know: a newer one wrote "
                f"it, so upgrade to that (pip install --upgrade mm-lightning)"
            ) from None
        self.network = config.to_dict()
        self.context_length = context_length
        kwargs["tie_word_embeddings"] = config.tied
        super().__init__(**kwargs)

    def network_config(self) -> NetworkConfig:
        """Return the network's own configuration."""
        return config_from_dict(self.network)

    @property
    def vocab_size(self) -> int:
        """Vocabulary size V; changed by `resize_token_embeddings`."""
        return self.network["fields"]["vocab_size"]

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        self.network["fields"]["vocab_size"] = value

    @property
    def hidden_size(self) -> int:
        """Model dimension d."""
        return self.network["fields"]["dim"]

    @property
    def num_hidden_layers(self) -> int:
        """Number of layers L."""
        return self.network["fields"]["layers"]

    @property
    def num_attention_heads(self) -> int:
        """Number of heads H."""
        return self.network["fields"]["heads"]
