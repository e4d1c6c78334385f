"""In-context learning: classification from demonstrations, as the paper measures it."""
