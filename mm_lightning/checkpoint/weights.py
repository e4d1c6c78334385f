"""The weights of each kind of checkpoint by name, read lazily."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mm_lightning.checkpoint.integrity import DEEPSPEED_TAG, METADATA_KEY, SAFETENSORS_SUFFIX, find_damage, read_commit
from mm_lightning.checkpoint.lazy_weights import Stored, Weights
from mm_lightning.checkpoint.safetensors_file import DTYPE_NAMES, read_safetensors_metadata
from mm_lightning.checkpoint.writing import describe_load_error, load
from mm_lightning.errors import UserError

PREFIX = "network."


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the entry `mm_lightning` of a checkpoint.

    Raises:
        UserError: it cannot be read, or was not written by this package.
    """
    try:
        if path.is_dir():
            return read_commit(path)[METADATA_KEY]
        if path.suffix == SAFETENSORS_SUFFIX:
            return json.loads(read_safetensors_metadata(path)[METADATA_KEY])
        return load(path, mmap=True)[METADATA_KEY]
    except KeyError as error:
        raise UserError(f"{path} was not written by mm: it has no entry {METADATA_KEY!r}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read the checkpoint {path}: {str(error).splitlines()[0]}") from error


def open_weights(path: Path) -> Weights:
    """Return the parameters and buffers of a checkpoint's network by name, read lazily; float32 from DeepSpeed folders.

    Raises:
        UserError: the checkpoint cannot be read, or holds more than tensors and plain values.
    """
    if path.is_dir():
        return read_shards(path)
    if path.suffix == SAFETENSORS_SUFFIX:
        return open_safetensors(path)
    state = load(path, mmap=True)["state_dict"]
    return _network_weights({name: Stored(partial(Tensor.detach, x), x.shape, x.dtype) for name, x in state.items()})


def open_safetensors(path: Path) -> Weights:
    """Return the tensors of a safetensors file, read lazily; tied ones under each of their names."""
    types = {name: dtype for dtype, name in DTYPE_NAMES.items()}
    file = safe_open(path, "pt", "cpu")
    stored = {}
    for name in file.keys():  # noqa: SIM118
        part = file.get_slice(name)
        stored[name] = Stored(partial(file.get_tensor, name), tuple(part.get_shape()), types[part.get_dtype()])
    tied = json.loads((file.metadata() or {}).get("tied", "{}"))
    return Weights(stored | {name: stored[source] for name, source in tied.items()})


def load_error(path: Path) -> str | None:
    """Return why a complete checkpoint cannot be loaded, as in "is no checkpoint (...)"; None if it can.

    Every file is loaded with its tensors memory-mapped. No code in it is run.
    """
    if path.is_file():
        return _unloadable_file(path)
    with weights_only_loading(path):
        for file in sorted(path.rglob("*.pt")):
            if problem := _unloadable_file(file):
                return f"cannot be loaded ({file.relative_to(path)} {problem})"
    return None


def _unloadable_file(path: Path) -> str | None:
    try:
        if path.suffix == SAFETENSORS_SUFFIX:
            open_safetensors(path)
        else:
            torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # whatever the reader raises
        return describe_load_error(error)
    return None


def set_deepspeed_accelerator() -> None:
    """Select DeepSpeed's CPU accelerator if there is no GPU; called before its import, which otherwise warns."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


@contextmanager
def weights_only_loading(path: Path) -> Iterator[None]:
    """Context manager in which torch.load accepts tensors, plain values and the plain classes of DeepSpeed's shards.

    DeepSpeed itself loads with `weights_only=False`, which would run code from the file.

    Raises:
        UserError: the file holds something else.
    """
    set_deepspeed_accelerator()
    import pickle

    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        with torch.serialization.safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]):
            yield
    except pickle.UnpicklingError as error:
        problem = find_damage(path) or describe_load_error(error)
        raise UserError(f"cannot read the checkpoint {path}: it {problem}") from error
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def read_shards(path: Path) -> Weights:
    """Return the float32 master weights in the shards of a DeepSpeed checkpoint, memory-mapped.

    Stages 1 and 2 concatenate all parameters of a group and split the result over the ranks; stage 3 splits each
    parameter into equal, padded pieces and concatenates the pieces of a rank.

    Raises:
        UserError: files are missing, or cannot be read.
    """
    folder = path / DEEPSPEED_TAG
    models, optimizers = (_sorted(folder.glob(f"*_{kind}_states.pt")) for kind in ("model", "optim"))
    if not models or not (optimizers or is_universal(path)):
        raise UserError(f"{path} holds no shards of ZeRO: name a checkpoint of mm fit")
    buffers = {name: Stored(partial(Tensor.detach, x), x.shape, x.dtype) for name, x in read_buffers(path).items()}
    if is_universal(path):
        return Weights({**read_universal(path).stored, **buffers})
    groups = read_states(path)["param_shapes"]
    with weights_only_loading(path):
        states = [torch.load(file, map_location="cpu", mmap=True)["optimizer_state_dict"] for file in optimizers]
    stored: dict[str, Stored] = {}
    if int(states[0]["zero_stage"]) == 3:
        ranks = [state["fp32_flat_groups"] for state in states]
        begin = 0
        for name, shape in ((name, shape) for group in groups for name, shape in group.items()):
            part = -(-shape.numel() // len(ranks))
            stored[name] = Stored(partial(_read_pieces, ranks, begin, part, shape), shape, torch.float32)
            begin += part
        return Weights({**_network_weights(stored).stored, **buffers})
    paddings = states[0].get("param_alignment_paddings") or [[0] * len(group) for group in groups]
    for index, group in enumerate(groups):
        pieces = [state["single_partition_of_fp32_groups"][index] for state in states]
        begin = 0
        for (name, shape), padding in zip(group.items(), paddings[index], strict=True):
            read = partial(_read_pieces, [pieces], begin, shape.numel(), shape)
            stored[name] = Stored(read, shape, torch.float32)
            begin += shape.numel() + padding
    return Weights({**_network_weights(stored).stored, **buffers})


def read_universal(path: Path, kind: str = "fp32") -> Weights:
    """Return the tensors of one kind in a universal checkpoint, which has a folder for each parameter.

    Args:
        path: the checkpoint.
        kind: fp32 (weights), exp_avg or exp_avg_sq (moments).
    """
    shapes = {name: shape for group in read_states(path)["param_shapes"] for name, shape in group.items()}

    def read(name: str) -> Tensor:
        state = load(path / DEEPSPEED_TAG / "zero" / name / f"{kind}.pt", mmap=True)
        # stages 1 and 2 write a dictionary, stage 3 the flat tensor itself
        return (state["param"] if isinstance(state, dict) else state).view(shapes[name])

    return _network_weights({n: Stored(partial(read, n), shape, torch.float32) for n, shape in shapes.items()})


def _network_weights(stored: Mapping[str, Stored]) -> Weights:
    """Return the weights of the network among those of a module, without their prefix."""
    return Weights({name.removeprefix(PREFIX): x for name, x in stored.items() if name.startswith(PREFIX)})


def read_states(path: Path) -> dict[str, Any]:
    """Return the model states that rank 0 has saved in a DeepSpeed checkpoint, with the progress of the run."""
    with weights_only_loading(path):
        return torch.load(_sorted((path / DEEPSPEED_TAG).glob("*_model_states.pt"))[0], map_location="cpu", mmap=True)


def read_buffers(path: Path) -> dict[str, Tensor]:
    """Return the buffers of the network in a DeepSpeed checkpoint, which are whole in the model states."""
    states = read_states(path)
    names = [name for name in states.get("buffer_names", []) if name.startswith(PREFIX)]
    return {name.removeprefix(PREFIX): states["module"][name] for name in names}


def is_universal(path: Path) -> bool:
    """Return whether a folder is a universal checkpoint of DeepSpeed."""
    return (path / DEEPSPEED_TAG / "zero").is_dir()


def _sorted(files: Any) -> list[Path]:
    """Sort by the numbers in the names: rank 10 after rank 9."""
    return sorted(files, key=lambda p: [int(n) for n in "".join(c if c.isdigit() else " " for c in p.name).split()])


def _read_pieces(sequences: list[list[Tensor]], begin: int, count: int, shape: torch.Size) -> Tensor:
    """Return a tensor that has `count` elements from `begin` on in each of some sequences of flat tensors."""
    slices = []
    for pieces in sequences:
        offset = 0
        for piece in pieces:
            slices.append(piece[max(begin - offset, 0) : max(begin + count - offset, 0)])
            offset += len(piece)
    return torch.cat(slices)[: shape.numel()].view(shape)
