import pytest
import torch

from mm_lightning.training.peak_flops import peak_flops

CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 836e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
    ],
)
def test_peaks_are_of_dense_products(monkeypatch, name, bf16):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: name)
    assert peak_flops(CUDA, torch.bfloat16) == pytest.approx(bf16, rel=1e-3)


def test_float32_products_may_be_shortened(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H200")
    for precision, peak in (("highest", 67e12), ("high", 494e12)):
        monkeypatch.setattr("torch.get_float32_matmul_precision", lambda precision=precision: precision)
        assert peak_flops(CUDA, torch.float32) == peak


def test_a_cpu_has_none():
    assert peak_flops(torch.device("cpu"), torch.float32) is None
