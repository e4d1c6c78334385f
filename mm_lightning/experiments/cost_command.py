"""`mm cost`: the parameters, FLOPs and memory of a training config, from its YAML alone."""

from __future__ import annotations

import argparse
import json
from typing import Any

from mm_lightning.console import print_table
from mm_lightning.errors import UserError
from mm_lightning.networks import NetworkConfig
from mm_lightning.networks.cost import forward_flops_per_token, module_costs, parameters, training_flops_per_token
from mm_lightning.options import OptionParser
from mm_lightning.ranges import Count, accept
from mm_lightning.training.memory_estimate import Layout, bytes_per_device, run_layout

DESCRIPTION = """\
Count parameters by part, floating-point operations per token, and bytes on each device for the strategy, precision
and number of devices of a training config. Nothing is allocated and no device is needed.

Takes the options of `mm fit` too: --config (several files are overlays) and single values, such as
--trainer.num_nodes 8, --data.micro_batch_size 2 or --model.network.levels '[short]'."""

EXAMPLES = """\
examples:
  mm cost --config configs/8b.yaml
  mm cost --config configs/8b.yaml --context 256 --model.network.levels '[short]'    without long-term memory
  mm cost --config configs/small.yaml --trainer.devices 8 --json"""


def cost_command(args: list[str]) -> None:
    """Run `mm cost` with the rest of its command line."""
    parser = OptionParser(
        "mm cost",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--context", type=int, help="tokens in the context, for the FLOPs; default: the config's")
    parser.add_argument("--json", action="store_true", help="print JSON, for other programs")
    options, fit_args = parser.parse_known_args(args)
    accept(Count | None, options.context, "--context")
    if "--config" not in " ".join(fit_args):
        raise UserError("mm cost needs a config: mm cost --config configs/8b.yaml")

    from mm_lightning.training.parse_fit import parse_fit

    config = parse_fit(fit_args)
    cost = cost_of(config.model.network, run_layout(config), options.context)
    if options.json:
        print(json.dumps(cost, indent=1))
    else:
        show(cost)


def cost_of(network: NetworkConfig, layout: Layout, context: int | None = None) -> dict[str, Any]:
    """Return the numbers that `mm cost` prints.

    Args:
        network: the network's dimensions.
        layout: how the run is spread over devices.
        context: tokens in the context, for the FLOPs; by default the layout's.
    """
    context = context or layout.context_length
    needed = bytes_per_device(network, layout)
    return {
        "network": type(network).__name__.removesuffix("Config"),
        "context": context,
        "parts": [
            {
                "name": part.name,
                "parameters": part.parameters,
                "forward_flops_per_token": part.forward_flops(context),
            }
            for part in module_costs(network)
        ],
        "parameters": parameters(network),
        "forward_flops_per_token": forward_flops_per_token(network, context),
        "training_flops_per_token": training_flops_per_token(network, context),
        "layout": vars(layout),
        "bytes_per_device": needed,
        "total_bytes_per_device": sum(needed.values()),
    }


def show(costs: dict[str, Any]) -> None:
    """Print the numbers as two tables."""
    name, columns = costs["network"], ("parameters", "forward_flops_per_token")
    rows: list[list[str] | None] = []
    rows += [[part["name"], *(scaled(part[column]) for column in columns)] for part in costs["parts"]]
    rows += [None, ["all", *(scaled(costs[column]) for column in columns)]]
    rows += [["training", "", scaled(costs["training_flops_per_token"])]]
    title = f"{name}, {costs['context']:,} tokens of context"
    print_table(["part", "parameters", "forward FLOPs/token"], rows, title)

    layout = costs["layout"]
    sharding = f"ZeRO-{layout['zero_stage']}" if layout["zero_stage"] else "every device holds all"
    recomputed = {
        False: "",
        True: ", blocks recomputed",
        "selective": ", blocks recomputed but for products and reads",
    }[layout["activation_checkpointing"]]
    offload = ", optimizer states in host memory" if layout["offload"] else ""
    print_table(
        [f"on each of {layout['devices']:,} devices", "GB"],
        [
            *([name, f"{count / 1e9:,.2f}"] for name, count in costs["bytes_per_device"].items()),
            None,
            ["all", f"{costs['total_bytes_per_device'] / 1e9:,.2f}"],
        ],
        title=f"memory: {layout['precision']}, {sharding}",
        caption=f"{layout['micro_batch_size']} x {layout['context_length']:,} tokens at a time{recomputed}{offload}; "
        "without fragmentation and kernels' scratch space",
    )


def scaled(number: int) -> str:
    """Return a count with three decimals and K, M, B or T."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.3f} {unit}"
    return str(number)
