"""What watches a run: one concern a file, each named in YAML in one line."""
