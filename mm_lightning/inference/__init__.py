"""Using a trained network: text from it, conversations, memory files; export and import."""
