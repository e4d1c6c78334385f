"""What tests read from run folders."""

import json
from pathlib import Path


def metrics(folder: Path, name: str = "train/loss") -> dict[int, float]:
    """A metric by step; of a step that appears twice the later line counts."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}
