"""Convert checkpoints of v1's published language model code (nanoMosaics).

Its scalars are stored divided by ten like ours, and exp(10 s) times a key on either side of an inner product is our
beta = exp(20 kappa): every value is copied as it is; only shapes differ. Every version of it cuts the exponent of a
key's factor at log(65535), and so do our networks: :class:`mm_lightning.memory.bandwidth.FixedBandwidth`.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm_lightning.errors import UserError
from mm_lightning.networks import V1, MemoryMosaicConfig

NORM_EPS = 1e-5  # of its LayerNorm, which is in no checkpoint

_LINEAR = r"\.(weight|bias)$"
_NAMES = [
    (r"^mosaic\.wte\.weight$", "embedding.weight"),
    (r"^lm_head\.weight$", "classifier.weight"),
    (r"^mosaic\.ln_f" + _LINEAR, r"norm.\1"),
    (r"^mosaic\.h\.(\d+)\.", r"blocks.\1."),
    (r"\.ln_1" + _LINEAR, r".contextual_norm.\1"),
    (r"\.ln_2" + _LINEAR, r".persistent_norm.\1"),
    (r"\.attn\.c_proj" + _LINEAR, r".W_o.\1"),
    (r"\.mlp\.c_proj" + _LINEAR, r".persistent.W_c.\1"),
    (r"\.attn\.v_featurizer\.W_v" + _LINEAR, r".contextual.full.W_psi.\1"),
    (r"\.attn\.v_featurizer\.coef$", ".contextual.full.values.gamma"),
    (r"\.attn\.v_featurizer\.val_scale$", ".contextual.full.values.alpha_psi_theta"),
    (r"\.attn\.k_featurizer\.", ".contextual.full."),
    (r"\.mlp\.P_k$", ".persistent.slot_keys"),
    (r"\.mlp\.P_v$", ".persistent.slot_values"),
    (r"\.mlp\.out_scale$", ".persistent.answer_scale"),
    (r"\.mlp\.k_featurizer\.", ".persistent."),
    (r"\.W_k" + _LINEAR, r".keys.W_phi.\1"),
    (r"\.leaky_avg\.leaky_key_beta$", ".keys.leak"),
    (r"\.key_scale$", ".bandwidth.kappa"),
]
_BUFFERS = re.compile(r"(\.leaky_avg\.coef|\.attn\.bias)$")


def read_v1(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the settings and the weights, by their published names, of a checkpoint file.

    Raises:
        UserError: it is not a checkpoint of v1's published code.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        torn = "it is no checkpoint that torch writes, or its end is missing"
        why = str(error).splitlines()[0] if zipfile.is_zipfile(path) else torn
        raise UserError(f"cannot read {path}: {why}") from error
    if isinstance(checkpoint, dict) and "mm_lightning" in checkpoint:
        raise UserError(f"{path} is a checkpoint of mm-lightning already: use it as it is")
    weights = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict):
        raise UserError(f"{path} is no checkpoint of v1's published code: it has no entry `model`")
    weights = {name.removeprefix("_orig_mod."): x for name, x in weights.items()}  # torch.compile's prefix
    if "mosaic.wte.weight" not in weights:
        first = next(iter(weights), "nothing")
        raise UserError(f"{path} is no memory mosaic of v1's published code: it holds {first}, not mosaic.wte.weight")
    return checkpoint.get("model_args") or {}, weights


def convert_v1(settings: dict[str, Any], weights: dict[str, Tensor]) -> tuple[MemoryMosaicConfig, dict[str, Tensor]]:
    """Return our configuration and weights of a checkpoint that :func:`read_v1` read.

    Raises:
        UserError: weights are missing.
    """
    try:
        vocabulary, dim = weights["mosaic.wte.weight"].shape
        slots = weights["mosaic.h.0.mlp.P_k"].shape  # (C, 1, H, S, D)
        classifier = weights.get("lm_head.weight", weights["mosaic.wte.weight"])
    except KeyError as error:
        raise UserError(f"the checkpoint lacks {error}") from error
    config = MemoryMosaicConfig(
        **{
            **V1,
            "vocab_size": vocabulary,
            "layers": 1 + max(int(n[1]) for name in weights if (n := re.match(r"mosaic\.h\.(\d+)\.", name))),
            "dim": dim,
            "heads": slots[2],
            "norm_eps": NORM_EPS,
            "tied": torch.equal(classifier, weights["mosaic.wte.weight"]),
            "dropout": float(settings.get("dropout", 0.0)),
            "persistent_slots": slots[3],
            "persistent_banks": slots[0],
            "bias": "mosaic.ln_f.bias" in weights,
        }
    )
    return config, {_rename(name): _shape(name, x) for name, x in weights.items() if not _BUFFERS.search(name)}


def _rename(name: str) -> str:
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _shape(name: str, x: Tensor) -> Tensor:
    if name.endswith((".P_k", ".P_v")):
        return x.squeeze(1)
    return x.flatten() if x.dim() == 4 else x  # (1, H, 1, 1)


def limit_keys(weights: dict[str, Tensor], limit: float) -> None:
    """Cut the exponents of keys, 10 kappa in contextual memories and 20 kappa in persistent ones, at a limit."""
    for name in [name for name in weights if name.endswith(".bandwidth.kappa")]:
        times = 20 if ".persistent." in name else 10
        weights[name] = weights[name].clamp(max=limit / times)
