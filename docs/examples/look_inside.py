"""Read a text with a trained network and look at weights, bandwidths and hidden states in Python.

    python docs/examples/look_inside.py runs/quickstart "def add(a, b):\n    return a + b\n"

Cells begin with `# %%`: editors that know them run the file as a notebook. Figures need the extra `report`.
"""

# %% A network and a text
import sys

import torch

from mm_lightning.checkpoint import load_network
from mm_lightning.inspection.profile import retrieval_profile
from mm_lightning.inspection.reads import Read, watch_reads

checkpoint = sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart"
default = "def add(a, b):\n    return a + b\n\n\ndef subtract(a, b):\n    return a - b\n"
text = sys.argv[2] if len(sys.argv) > 2 else default

network, tokenizer = load_network(checkpoint)
network.eval()
tokens = torch.tensor([[tokenizer.bos, *tokenizer.encode(text)]])  # (1, T)
words = [tokenizer.decode([token]) for token in tokens[0].tolist()]
print(f"{len(words)} tokens, levels {list(network.config.levels)}")

# %% Retrieval weights: which pairs does the last token read, in each layer and level?
last = tokens.shape[1] - 1
strongest: list[str] = []


def visit(read: Read) -> None:
    """Note the pair that the first head reads most; called for each memory when it is read."""
    for queries, weights in read.weights(last):  # (B, H, T', T): pieces of queries
        weight, pair = weights[0, 0, last - queries.start].max(-1)
        strongest.append(f"layer {read.layer} {read.level:>5}: {weight:.2f} from {words[pair]!r}")


with torch.no_grad(), watch_reads(network, visit):
    logits = network(tokens)
print("\n".join(strongest))

# %% What it expects next
probabilities, candidates = logits[0, -1].softmax(-1).topk(5)
for probability, token in zip(probabilities.tolist(), candidates.tolist(), strict=True):
    print(f"{probability:.3f} {tokenizer.decode([token])!r}")

# %% Hidden states: the vectors after each block
states: list[torch.Tensor] = []
hooks = [block.register_forward_hook(lambda _, __, output: states.append(output[0])) for block in network.blocks]
with torch.no_grad():
    network(tokens)
for hook in hooks:
    hook.remove()
print("norms of the last token's vector:", [round(state[0, -1].norm().item(), 2) for state in states])

# %% The learned bandwidth, equation (6), of each head
for name, parameter in network.named_parameters():
    if "bandwidth" in name:
        print(f"{name}: {parameter.detach().flatten().tolist()}")

# %% Figure 1: mean retrieval weight by distance
profile = retrieval_profile(network, tokens).mean()  # level -> (L, H, distances)
for level, weights in profile.items():
    print(level, [round(x, 4) for x in weights.mean((0, 1)).tolist()[:10]])

try:
    from matplotlib import pyplot
except ImportError:
    print("figures need matplotlib: the extra report")
else:
    for level, weights in profile.items():
        pyplot.plot(weights.mean((0, 1)), label=level)
    pyplot.xlabel("distance, tokens")
    pyplot.ylabel("mean retrieval weight")
    pyplot.legend()
    pyplot.savefig("retrieval_profile.png")
