"""The commands `run`, `plan` and `annotate`."""
