"""Looking inside a trained network: what its memories read."""
