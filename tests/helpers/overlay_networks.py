"""A small network of each overlay: those of configs/ablations, and YaRN."""

from pathlib import Path

import yaml

from mm_lightning import networks

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = *sorted(CONFIGS.glob("ablations/*.yaml")), CONFIGS / "overlays" / "yarn.yaml"
SHRUNKEN = {
    "attention_every": 2,
    "dropout": 0.0,
    "experts": 4,
    "kv_heads": 1,
    "persistent_slots": 30,
    "yarn_context": 16,
}


def overlay_configs(**small):
    """Configurations by the overlay's name: the settings of `small`, changed as the overlay says."""
    configs = {}
    for path in FILES:
        network = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["network"]
        settings = {name: SHRUNKEN.get(name, value) for name, value in network.get("init_args", {}).items()}
        config_class = getattr(networks, network.get("class_path", "TransformerConfig"))
        configs[path.stem] = config_class(**small | settings)
    return configs
