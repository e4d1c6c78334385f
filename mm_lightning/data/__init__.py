"""Text to tokens to litdata shards to batches of packed documents."""
