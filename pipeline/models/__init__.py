"""Loading of models from folders, the hub, packages and GGUF files."""
