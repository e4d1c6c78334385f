"""Forward passes on a GPU that is only imagined: tensors have shapes, types and a device, but no numbers.

What would make a real GPU's host wait for a tensor's values, to know a shape or to choose, raises there.
"""

from contextlib import nullcontext
from dataclasses import replace
from functools import wraps

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mm_lightning.memory.contextual import ContextualMemory
from mm_lightning.memory.documents import Documents
from mm_lightning.memory.kernels import dispatch, fused_read
from mm_lightning.memory.persistent import SlotMemory
from mm_lightning.memory.retrieval import SoftmaxRetrieval
from mm_lightning.networks import triton_loss

BATCH, TIME = 2, 100
KEYS, VALUES = (f"mm_lightning_memory_kernels_dispatch.{name}.default" for name in ("gated_keys", "ahead_values"))
FLASH = "torch_attn._varlen_attn.default"


class Watch(TorchDispatchMode):
    """Notes the operators that run, and those whose results are not on a GPU."""

    def __init__(self):
        super().__init__()
        self.operators, self.elsewhere = [], []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        self.operators.append(str(operator))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor) and x.device.type != "cuda":
                self.elsewhere.append(str(operator))
        return result


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """What is asked about a GPU before it is used."""
    monkeypatch.setattr(fused_read, "_capability", lambda device: (9, 0))
    monkeypatch.setattr(dispatch, "kernel_mismatch", lambda *arguments: None)
    monkeypatch.setattr(triton_loss, "kernel_mismatch", lambda *arguments: None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *device: (9, 0))
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *arguments, **settings: True)


@pytest.fixture(autouse=True)
def never_planned(monkeypatch):
    """No read is left to kernels that have to be planned for each shape; the reads that were made."""
    calls = []
    functions = F.scaled_dot_product_attention, fused_read._varlen_attn()

    def spy(function):
        @wraps(function)  # and the signature, which is asked for
        def call(*arguments, **settings):
            assert not torch.backends.cuda.cudnn_sdp_enabled()
            calls.append(function)
            return function(*arguments, **settings)

        return call

    fused, varlen = map(spy, functions)
    monkeypatch.setattr(F, "scaled_dot_product_attention", fused)
    monkeypatch.setattr(fused_read, "_varlen_attn", lambda: varlen)
    assert torch.backends.cuda.cudnn_sdp_enabled()
    yield calls
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.fixture
def imagined(config):
    """A network, tokens and documents on the GPU. Flash attention wants heads of a multiple of 8 numbers."""
    starts = torch.zeros(BATCH, TIME, dtype=torch.bool)
    starts[0, 7] = starts[1, 60] = True
    documents = Documents.from_starts(starts)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        network = replace(config, dim=48, heads=3, layers=getattr(config, "attention_every", None) or 1).build()
        yield network, torch.zeros(BATCH, TIME, dtype=torch.int64), documents.to("cuda")


def waits(config):
    """Experts do: the host must know how many tokens each one gets."""
    experts = getattr(config, "persistent", None) == "experts"
    return pytest.raises(DynamicOutputShapeException) if experts else nullcontext()


def count(network, kind):
    return sum(isinstance(module, kind) for module in network.modules())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_step_stays_on_the_gpu_and_does_not_wait_for_it(imagined, config, precision, never_planned):
    network, tokens, documents = imagined
    with waits(config), Watch() as watch:
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            loss = network(tokens, documents, tokens, delays={"long": 5})
        assert (loss.device.type, loss.dtype, loss.shape) == ("cuda", torch.float32, ())
        memories, slots, reads = (count(network, kind) for kind in (ContextualMemory, SlotMemory, SoftmaxRetrieval))
        assert watch.operators.count(KEYS) == memories + slots
        assert watch.operators.count(VALUES) == memories
        assert watch.operators.count(FLASH) == (reads if precision == "bf16" else 0)
    assert not watch.elsewhere
    assert bool(never_planned) == bool(count(network, SoftmaxRetrieval) + count(network, SlotMemory))


def test_text_is_generated_without_waiting_for_the_gpu(imagined, config, never_planned):
    network, tokens, _ = imagined
    with waits(config), torch.inference_mode():
        state = network.new_state(BATCH)
        for time in (TIME, 1, 1):
            logits = network(tokens[:, :time], state=state, logits_to_keep=1)
            assert (logits.device.type, logits.shape) == ("cuda", (BATCH, 1, config.vocab_size))
    assert bool(never_planned) == bool(count(network, SoftmaxRetrieval) + count(network, SlotMemory))


def test_what_a_user_forbids_stays_forbidden():
    with FakeTensorMode():
        x = torch.empty(1, device="cuda")
    try:
        torch.backends.cuda.enable_flash_sdp(False)
        with fused_read.any_shape(x):
            assert not torch.backends.cuda.flash_sdp_enabled()
            assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_flash_sdp(True)
