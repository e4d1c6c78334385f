"""Read Llama-style folders of transformers, weights in safetensors, as our transformer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from mm_lightning.errors import UserError
from mm_lightning.networks import TransformerConfig

_NAMES = {
    "model.embed_tokens.weight": "embedding.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "classifier.weight",
}
_BLOCK_NAMES = {
    "input_layernorm": "contextual_norm",
    "self_attn.q_proj": "contextual.full.W_q",
    "self_attn.k_proj": "contextual.full.W_k",
    "self_attn.v_proj": "contextual.full.W_v",
    "self_attn.o_proj": "W_o",
    "post_attention_layernorm": "persistent_norm",
    "mlp.gate_proj": "persistent.W_1",
    "mlp.up_proj": "persistent.W_3",
    "mlp.down_proj": "persistent.W_2",
}
_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")


def read_config(folder: Path) -> dict[str, Any]:
    """Read the config.json of a folder."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json: it is no folder of transformers")
    return read_json(folder / "config.json")


def read_json(file: Path) -> dict[str, Any]:
    """Read the object of a JSON file.

    Raises:
        UserError: it is damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: it is not an object")
    return content


def read_safetensors(folder: Path) -> dict[str, Tensor]:
    """Read all weights of a folder: model.safetensors, or the files that model.safetensors.index.json names.

    Raises:
        UserError: a file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = ["model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict):
            raise UserError(f"{index} is damaged: it does not say which file holds which weights")
        files = sorted(set(places.values()))
    weights: dict[str, Tensor] = {}
    for file in files:
        if not (folder / file).is_file():
            raise UserError(f"{folder} holds no {file}: only weights in safetensors are read")
        try:
            weights.update(load_file(folder / file))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{folder / file} is damaged: {error}") from error
    return weights


def llama_config(config: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a Llama's config.json.

    Raises:
        UserError: the Llama has a part that our transformer lacks.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    wrong = {
        f"rotary positions are scaled ({kind})": kind != "default",
        "its attention has biases": config.get("attention_bias", False),
        "its SwiGLU networks have biases": config.get("mlp_bias", False),
        f"its head dimension is {head_dim} instead of hidden_size / num_attention_heads": head_dim * heads
        != config["hidden_size"],
        f"its activation is {config.get('hidden_act')} instead of silu": config.get("hidden_act", "silu") != "silu",
        "its weights are quantized": config.get("quantization_config") is not None,
        "a part of the head is not rotated": rope.get("partial_rotary_factor", 1.0) != 1.0,
    }
    problems = [what for what, is_so in wrong.items() if is_so]
    if problems:
        raise UserError(f"this Llama cannot be expressed here: {'; '.join(problems)}")
    return TransformerConfig(
        vocab_size=config["vocab_size"],
        layers=config["num_hidden_layers"],
        dim=config["hidden_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        persistent_dim=config["intermediate_size"],
        norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_base=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        tied=config.get("tie_word_embeddings", False),
    )


def convert_llama(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename Llama's weights. (Both rotate the pairs (x_i, x_{i + D/2}), so no matrix is permuted.)"""
    renamed = {}
    for name, x in weights.items():
        block = _BLOCK.fullmatch(name)
        if block and block[2] in _BLOCK_NAMES:
            renamed[f"blocks.{block[1]}.{_BLOCK_NAMES[block[2]]}.weight"] = x
        elif not name.endswith(".rotary_emb.inv_freq"):  # a buffer in old files
            renamed[_NAMES.get(name, name)] = x
    return renamed
