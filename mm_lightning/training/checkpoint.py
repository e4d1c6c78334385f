"""Checkpoints: written whole or not at all, found, described and turned back into networks.

A plain checkpoint is one file, `step=200.ckpt`; DeepSpeed's is a folder of that name holding every rank's shard and a
`commit.json` written last. Both appear under their names only when they are complete: until then they are called
`....partial`. Each describes its network under the key `mm_lightning`:

    {"version": "0.1.0", "network": {"class": "MemoryMosaicConfig", "fields": {...}},
     "tokenizer": {"name": ..., "sha256": ..., "json": the text of tokenizer.json}, "context_length": 512}

A file of it is read by `torch.load(path, weights_only=True)["mm_lightning"]`; in a folder it is in commit.json.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from mm_lightning.errors import UserError
from mm_lightning.training.run_folder import numbered

if TYPE_CHECKING:
    from mm_lightning.data import Tokenizer
    from mm_lightning.networks import Network, NetworkConfig

KEY = "mm_lightning"
PARTIAL = ".partial"
COMMIT = "commit.json"
TAG = "checkpoint"  # the folder inside a DeepSpeed checkpoint in which Lightning puts the shards


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a plain checkpoint beside its target, then renames it: a killed run leaves no broken file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint.

        Raises:
            UserError: there is no space for it; what was there before is left as it was.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        check_space(target, _tensor_bytes(checkpoint))
        partial = target.with_name(target.name + PARTIAL)
        try:
            with open(partial, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
            _sync_folder(target.parent)
        except (OSError, RuntimeError) as error:
            partial.unlink(missing_ok=True)
            if is_full(error, target):
                raise no_space(target) from error
            raise


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    children = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(_tensor_bytes(child) for child in children)


def check_space(target: Path, needed: int) -> None:
    """Raises a UserError where a file system has less than `needed` bytes free."""
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise no_space(target, f": it needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free")


def no_space(target: Path, why: str = "") -> UserError:
    """The error for a full disk."""
    return UserError(
        f"no space left to write the checkpoint {target}{why}. Earlier checkpoints are untouched: "
        f"free some space and continue with --resume"
    )


def is_full(error: Exception, target: Path) -> bool:
    """Whether writing failed because the disk is full."""
    # torch.save reports a full disk as a RuntimeError about an unexpected position
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return full or "unexpected pos" in str(error) or shutil.disk_usage(target.parent).free < 1 << 20


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit_folder(partial: Path, target: Path, world_size: int, about: dict[str, Any]) -> None:
    """Marks a DeepSpeed checkpoint as complete and gives it its name (called on one process).

    Args:
        partial: the folder that all processes have finished writing.
        target: its final name; an older folder of that name is replaced.
        world_size: processes that wrote it.
        about: what is under the key `mm_lightning` of a plain checkpoint.
    """
    files = {str(p.relative_to(partial)): p.stat().st_size for p in sorted(partial.rglob("*")) if p.is_file()}
    with open(partial / COMMIT, "w", encoding="utf-8") as file:
        json.dump({"world_size": world_size, "files": files, KEY: about}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    old = target.with_name(target.name + ".old" + PARTIAL)
    if target.exists():
        os.replace(target, old)
    os.replace(partial, target)
    _sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def is_whole(path: Path) -> bool:
    """Whether a checkpoint file or folder is complete."""
    if path.name.endswith(PARTIAL):
        return False
    if path.is_file():
        return path.suffix == ".ckpt"
    try:
        files = json.loads((path / COMMIT).read_text(encoding="utf-8"))["files"]
        return all((path / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def find_checkpoint(run_or_file: str | Path) -> Path:
    """The checkpoint meant by a path: itself, or the newest whole one of a run folder.

    Args:
        run_or_file: a checkpoint (file, or DeepSpeed folder), a run folder (`runs/quickstart/0`), or a root of
            numbered run folders (`runs/quickstart`: the newest run that has a checkpoint).

    Raises:
        UserError: there is no whole checkpoint.
    """
    path = Path(run_or_file)
    if not path.exists():
        raise UserError(f"there is no checkpoint or run folder {path}")
    if path.is_file() or (path / COMMIT).is_file() or path.suffix == ".ckpt":
        if not is_whole(path):
            raise UserError(f"{path} is not a whole checkpoint: name another, or its run folder to take the newest")
        return path
    for folder in [path, *reversed(numbered(path))]:
        found = [p for p in (folder / "checkpoints").glob("*.ckpt") if is_whole(p)]
        if found:
            return max(found, key=lambda p: (step_of(p), p.stat().st_mtime))
    raise UserError(f"{path} holds no whole checkpoint: train first (mm fit), or name a checkpoint file")


def step_of(path: Path) -> int:
    """The step in a name like `step=200.ckpt`; -1 where there is none."""
    found = re.search(r"step=(\d+)", path.name)
    return int(found[1]) if found else -1


def describe_network(config: NetworkConfig, tokenizer: dict[str, Any] | None, context_length: int | None) -> dict:
    """What a checkpoint says of its network, in plain types, under the key `mm_lightning`."""
    from mm_lightning import __version__

    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}
    network = {"class": type(config).__name__, "fields": fields}
    return {"version": __version__, "network": network, "tokenizer": tokenizer, "context_length": context_length}


def read_about(path: Path) -> dict[str, Any]:
    """The entry `mm_lightning` of a checkpoint.

    Raises:
        UserError: it cannot be read, or was not written by this package.
    """
    try:
        if path.is_dir():
            return json.loads((path / COMMIT).read_text(encoding="utf-8"))[KEY]
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)[KEY]
    except KeyError as error:
        raise UserError(f"{path} was not written by mm: it has no entry {KEY!r}") from error
    except Exception as error:
        raise UserError(f"cannot read the checkpoint {path}: {str(error).splitlines()[0]}") from error


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, str]:
    """What a checkpoint says of the tokenizer: enough to make it again."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        tokenizer.save(file)
        text = file.read_text(encoding="utf-8")
    return {"name": tokenizer.name, "sha256": tokenizer.sha256, "json": text}


def network_config(about: dict[str, Any]) -> NetworkConfig:
    """The configuration of the network that a checkpoint holds."""
    from mm_lightning import networks

    return getattr(networks, about["network"]["class"])(**about["network"]["fields"])


FREE = frozenset(
    {"norm_eps", "dropout", "short_term_window", "long_term_delay", "inference_delay", "rope_base", "balance_weight"}
)
"""Settings that change what a network computes but not which parameters it has: fine-tuning may change them."""


def check_architecture(path: Path, config: NetworkConfig, fewer_levels: bool = False) -> None:
    """Holds a checkpoint's network against the configured one.

    Args:
        path: the checkpoint.
        config: the configured network.
        fewer_levels: whether the configured one may lack memory levels that the checkpoint has.

    Raises:
        UserError: they differ; it names how.
    """
    saved, wanted = read_about(path)["network"], describe_network(config, None, None)["network"]
    if saved["class"] != wanted["class"]:
        raise UserError(
            f"checkpoint {path} holds a {saved['class'].removesuffix('Config')} but the config asks for a "
            f"{wanted['class'].removesuffix('Config')}: use the config of its run folder, or another checkpoint"
        )
    # A field younger than the checkpoint had what is now its default.
    before = describe_network(network_config({"network": saved}), None, None)["network"]["fields"]
    now = wanted["fields"]
    different = [f"{k} {before.get(k)} instead of {v}" for k, v in now.items() if k not in FREE and before.get(k) != v]
    removed = set(before.get("levels", [])) > set(now["levels"])
    if fewer_levels and removed:
        different = [line for line in different if not line.startswith("levels ")]
    if different:
        raise UserError(
            f"checkpoint {path} holds a network of another architecture: {', '.join(different)}. "
            f"Use the config of its run folder, or another checkpoint"
        )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The network's parameters by name, float32 from a DeepSpeed folder, on the CPU and read as they are used."""
    if path.is_dir():
        calm_deepspeed()
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        talk = io.StringIO()  # progress bars within a second
        with contextlib.redirect_stdout(talk), contextlib.redirect_stderr(talk):
            state = get_fp32_state_dict_from_zero_checkpoint(str(path), tag=TAG, lazy_mode=True)
        state = {name: value.contiguous() for name, value in state.items()}
    else:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)["state_dict"]
    prefix = "network."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def calm_deepspeed() -> None:
    """Tells DeepSpeed, before its import, that there is no GPU, which it otherwise guesses with a warning."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def load_weights(network: Network, path: Path, rank: int = 0) -> None:
    """Fills a network with a checkpoint's weights, also one that ZeRO-3 has partitioned (all ranks call it).

    Raises:
        UserError: the checkpoint's network has other parameters.
    """
    check_architecture(path, network.config, fewer_levels=True)
    partitioned = any(hasattr(p, "ds_id") for p in network.parameters())
    weights = read_weights(path) if rank == 0 or not partitioned else {}
    if weights:
        remove_levels(weights, read_about(path)["network"]["fields"].get("levels", []), network.config)
    for name, parameter in network.named_parameters():
        with _gathered(parameter) if partitioned else contextlib.nullcontext(), torch.no_grad():
            if weights:
                parameter.copy_(weights[name])


def remove_levels(weights: dict[str, Tensor], levels: list[str], config: NetworkConfig) -> None:
    """Takes the memory levels that `config` lacks out of a network's weights: their columns of each W_o.

    Args:
        weights: by name; changed in place. What belongs to a level alone stays and is not asked for.
        levels: of the network that the weights are from.
        config: of the network that they go into.
    """
    if list(config.levels) == list(levels):
        return
    kept = [levels.index(level) for level in config.levels]
    for name in [name for name in weights if name.endswith(".W_o.weight")]:
        columns = weights[name].chunk(len(levels), 1)
        weights[name] = torch.cat([columns[n] for n in kept], 1)


def _gathered(parameter: torch.nn.Parameter) -> Any:
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameter, modifier_rank=0)


def load_network(
    run_or_file: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> tuple[Network, Tokenizer]:
    """The trained network and its tokenizer, from a checkpoint alone.

    Args:
        run_or_file: as for :func:`find_checkpoint`.
        device: where the network goes.
        dtype: the type of its parameters; None keeps float32.

    Returns:
        The network in evaluation mode, and the tokenizer that its data was made with.
    """
    path = find_checkpoint(run_or_file)
    about = read_about(path)
    network = network_config(about).build()
    load_weights(network, path)
    return network.to(device=device, dtype=dtype).eval(), restore_tokenizer(about, path)


def restore_tokenizer(about: dict[str, Any], path: Path) -> Tokenizer:
    """The tokenizer that a checkpoint carries."""
    from mm_lightning.data import load_tokenizer

    if not about["tokenizer"]:
        raise UserError(f"checkpoint {path} carries no tokenizer: it was trained without prepared data")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        file.write_text(about["tokenizer"]["json"], encoding="utf-8")
        return load_tokenizer(str(file))
