"""Checkpoints of a small network: plain ones, and shards laid out as DeepSpeed lays them."""

import torch

from mm_lightning.checkpoint import METADATA_KEY, PARTIAL_SUFFIX, commit_folder, network_metadata
from mm_lightning.checkpoint.trainer_io import AtomicCheckpointIO
from mm_lightning.networks import MemoryMosaicConfig

SMALL = {"vocab_size": 12, "layers": 2, "dim": 4, "heads": 1, "persistent_dim": 6, "long_term_delay": (1, 1)}


def network(tied: bool = False):
    torch.manual_seed(1)
    return MemoryMosaicConfig(**SMALL, inference_delay=1, tied=tied).build()


def about(net) -> dict:
    return network_metadata(net.config, None, 16)


def plain(net, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {f"network.{name}": value for name, value in net.state_dict().items()}
    AtomicCheckpointIO().save_checkpoint({"state_dict": state, METADATA_KEY: about(net)}, path)
    return path


def sharded(net, path, stage: int, ranks: int = 3):
    """Shards of two groups of parameters, as ZeRO lays them out: written anew here, not by what is tested."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    (partial / "checkpoint").mkdir(parents=True)
    named = [(f"network.{name}", p.detach()) for name, p in net.named_parameters()]
    groups = [dict(named[::2]), dict(named[1::2])]
    shapes = [{name: p.shape for name, p in group.items()} for group in groups]
    pieces: list[list[torch.Tensor]] = [[] for _ in range(ranks)]
    for group in groups:
        flat = [p.flatten() for p in group.values()]
        if stage == 2:
            joined = torch.cat(flat)
            length = -(-len(joined) // ranks)
            parts = [joined[r * length : (r + 1) * length] for r in range(ranks)]
        else:
            padded = [torch.cat([x, torch.full((-len(x) % ranks,), float("nan"))]) for x in flat]
            parts = [torch.cat([x.chunk(ranks)[r] for x in padded]) for r in range(ranks)]
        for rank in range(ranks):
            pieces[rank].append(parts[rank].clone())
    key = "single_partition_of_fp32_groups" if stage == 2 else "fp32_flat_groups"
    for rank in range(ranks):
        prefix = f"zero_pp_rank_{rank}_mp_rank_00"
        model = "mp_rank_00" if stage == 2 else prefix
        torch.save({"param_shapes": shapes}, partial / "checkpoint" / f"{model}_model_states.pt")
        states = {"zero_stage": stage, key: pieces[rank]}
        torch.save({"optimizer_state_dict": states}, partial / "checkpoint" / f"{prefix}_optim_states.pt")
    commit_folder(partial, path, ranks, about(net))
    return path
