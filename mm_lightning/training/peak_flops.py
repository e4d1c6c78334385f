"""Peak FLOP/s of devices, for model FLOPs utilization (MFU)."""

from __future__ import annotations

import torch

H200 = {
    "SXM": {torch.bfloat16: 989e12, torch.float16: 989e12, "tf32": 494e12, torch.float32: 67e12},
    "NVL": {torch.bfloat16: 836e12, torch.float16: 836e12, "tf32": 418e12, torch.float32: 60e12},
}
"""FLOP/s of dense matrix products from NVIDIA's data sheet; Lightning's table has the doubled sparse values."""


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the FLOP/s of dense matrix products in `dtype`; None, with a warning on a GPU, if unknown."""
    if device.type == "cuda" and "H200" in (name := torch.cuda.get_device_name(device)):
        tf32 = dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
        return H200["NVL" if "NVL" in name else "SXM"]["tf32" if tf32 else dtype]
    from lightning.fabric.utilities.throughput import get_available_flops

    return get_available_flops(device, dtype)
