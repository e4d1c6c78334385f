from small_networks import build, config, packed  # noqa: F401
