"""Registration with transformers: after `import mm_lightning.transformers` its auto classes load exported folders.

A self-contained folder (`mm export --self_contained`) needs none: `from_pretrained(FOLDER, trust_remote_code=True)`.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mm_lightning.inference.configuration import MMLightningConfig
from mm_lightning.inference.modeling import MMLightningForCausalLM
from mm_lightning.inference.tokenization import MMLightningTokenizer

AutoConfig.register(MMLightningConfig.model_type, MMLightningConfig, exist_ok=True)
AutoTokenizer.register(MMLightningConfig, fast_tokenizer_class=MMLightningTokenizer, exist_ok=True)
AutoModelForCausalLM.register(MMLightningConfig, MMLightningForCausalLM, exist_ok=True)
