"""The section of LongPPL: perplexity of the tokens that the long context makes probable."""

from __future__ import annotations

from typing import Any

from mm_lightning.experiments import page
from mm_lightning.experiments.evaluated.estimate_table import EstimateTable
from mm_lightning.experiments.evaluated.estimates import estimate
from mm_lightning.experiments.evaluated.evaluations import Group
from mm_lightning.experiments.evaluated.report_section import Part, ReportSection, counts
from mm_lightning.experiments.network_looks import Looks
from mm_lightning.style import tokens

TEXT = (
    "LongPPL (arXiv 2410.23771) is the perplexity of key tokens: those whose loss falls by more than alpha nats when "
    "all of the context is given instead of a short one, and whose log-likelihood then is above beta. Lower is better. "
    "Published: it correlates with LongBench by -0.96, the perplexity of all tokens not at all. "
)
CHOSEN_BY_EACH = (
    "Each network has chosen its key tokens itself, so that networks are not compared on the same tokens, and one that "
    "makes no use of the long context has few: read the share of key tokens with it, or give all one --evaluator, with "
    "which there are differences on key tokens too. "
)
DIFFERENCES = "Differences are of losses, the logarithms of perplexities."


def section(group: Group, looks: Looks) -> list[Part | None]:
    """Return LongPPL, the perplexity of all tokens and the share of key tokens, by context; then some key tokens."""
    heads = ["network", "trained at", "sequences", "context", "LongPPL", "perplexity of all", "key tokens, %"]
    table = EstimateTable(f"long-ppl{group.suffix}", heads, 3)
    examples = EstimateTable(
        f"long-ppl-tokens{group.suffix}", ["network", "position", "before", "token", "loss", "loss falls by"]
    )
    for network in group.networks:
        rows = [row for e in group.of(network) for row in e.rows]
        trained = network.about.get("context_length")
        for context in dict.fromkeys(row.group["context"] for row in rows):
            by_name = {(row.metric, row.group["tokens"]): row for row in rows if row.group["context"] == context}
            names = [("perplexity", "key"), ("perplexity", "all"), ("share", "key")]
            cells: list[Any] = [estimate(by_name[name]) if name in by_name else None for name in names]
            asked = counts([row.count for row in by_name.values()])
            table.add(group.label(network), tokens(trained) if trained else "unknown", asked, tokens(context), *cells)
        records = [record for e in group.of(network) for record in e.records()]
        for record in records[:2]:
            for one in record["key_tokens"][:3]:
                place, loss, fall = f"{one['position']:,}", f"{one['loss']:.2f}", f"{one['fall']:.2f}"
                examples.add(network.name, place, one["before"], one["token"], loss, fall)
    by_each = not any(e.settings.get("evaluator") for e in group.evaluations)
    chosen = CHOSEN_BY_EACH if by_each else "One network has chosen the key tokens for all. "
    return [page.Text(TEXT + chosen + DIFFERENCES), table, examples]


SECTION = ReportSection("LongPPL", lambda e: e.task == "long_ppl", section)
