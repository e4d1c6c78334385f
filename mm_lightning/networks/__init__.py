"""Language models built from memories, the transformer they are compared with, and what they cost. Plain torch."""

from mm_lightning.networks.base import Checkpointing as Checkpointing
from mm_lightning.networks.base import Network as Network
from mm_lightning.networks.config import NetworkConfig as NetworkConfig
from mm_lightning.networks.gated_deltanet import GatedDeltaNet as GatedDeltaNet
from mm_lightning.networks.gated_deltanet import GatedDeltaNetConfig as GatedDeltaNetConfig
from mm_lightning.networks.memory_mosaic import V1 as V1
from mm_lightning.networks.memory_mosaic import MemoryMosaic as MemoryMosaic
from mm_lightning.networks.memory_mosaic import MemoryMosaicConfig as MemoryMosaicConfig
from mm_lightning.networks.transformer import Transformer as Transformer
from mm_lightning.networks.transformer import TransformerConfig as TransformerConfig
