"""New knowledge: documents that a network reads once, and then is asked about (RULER's definitions)."""
