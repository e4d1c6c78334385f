"""nanoGPT's recipe for a CPU with networks of transformers, to see what the network alone changes.

python shakespeare_control.py gpt2|llama random|neighbors shakespeare.txt

Chunks begin at random places, as in nanoGPT, or are neighbors that are shuffled anew each epoch, as in mm-lightning.
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

CONTEXT, BATCH, STEPS, WARMUP, RATE = 64, 12, 2000, 100, 1e-3


def build(kind: str) -> nn.Module:
    """Return a network of 0.8 M parameters: 4 layers, 4 heads, dim 128, no dropout."""
    if kind == "gpt2":
        sizes = {"n_positions": CONTEXT, "n_embd": 128, "n_layer": 4, "n_head": 4}
        return GPT2LMHeadModel(GPT2Config(vocab_size=65, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **sizes))
    sizes = {"hidden_size": 128, "intermediate_size": 341, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=65, tie_word_embeddings=True, max_position_embeddings=CONTEXT, **sizes)
    return LlamaForCausalLM(config)


def starts(draw: str, length: int) -> Iterator[list[int]]:
    """Yield the first positions of the chunks of each batch."""
    generator, order = torch.Generator().manual_seed(1), []
    while True:
        if draw == "random":
            yield torch.randint(length - CONTEXT, (BATCH,), generator=generator).tolist()
        else:
            while len(order) < BATCH:
                order += (torch.randperm((length - 1) // CONTEXT, generator=generator) * CONTEXT).tolist()
            yield order[:BATCH]
            order = order[BATCH:]


def main(kind: str, draw: str, path: str) -> None:
    """Train, and print the mean validation loss over the last tenth of the text, in nats a character."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    text = Path(path).read_text(encoding="utf-8")
    characters = {character: number for number, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([characters[character] for character in text])
    train, validation = tokens[: len(tokens) * 9 // 10], tokens[len(tokens) * 9 // 10 :]
    network = build(kind)
    decayed = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in network.parameters() if parameter.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99))

    def loss(data: Tensor, begin: list[int]) -> Tensor:
        inputs = torch.stack([data[i : i + CONTEXT] for i in begin])
        targets = torch.stack([data[i + 1 : i + 1 + CONTEXT] for i in begin])
        return cross_entropy(network(inputs).logits.flatten(0, 1), targets.flatten())

    batches = starts(draw, len(train))
    for step in range(1, STEPS + 1):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))
        for group in optimizer.param_groups:
            group["lr"] = RATE * (step / WARMUP if step < WARMUP else 0.1 + 0.9 * cosine)
        optimizer.zero_grad()
        loss(train, next(batches)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step % 500 == 0:
            begin = list(range(0, len(validation) - CONTEXT - 1, CONTEXT))
            with torch.no_grad():
                parts = [begin[i : i + 60] for i in range(0, len(begin), 60)]
                total = sum(loss(validation, part).item() * len(part) for part in parts)
            print(f"{kind}, {draw} chunks, step {step}: validation loss {total / len(begin):.4f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
