"""Language models built from memories, the transformer they are compared with, and what they cost. Plain torch."""

from mm_lightning.networks.base import Checkpointing, Network
from mm_lightning.networks.config import NetworkConfig
from mm_lightning.networks.gated_deltanet import GatedDeltaNet, GatedDeltaNetConfig
from mm_lightning.networks.memory_mosaic import V1, MemoryMosaic, MemoryMosaicConfig
from mm_lightning.networks.transformer import Transformer, TransformerConfig

__all__ = [
    "V1",
    "Checkpointing",
    "GatedDeltaNet",
    "GatedDeltaNetConfig",
    "MemoryMosaic",
    "MemoryMosaicConfig",
    "Network",
    "NetworkConfig",
    "Transformer",
    "TransformerConfig",
]
