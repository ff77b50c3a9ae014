"""Model sources: from a folder, hub name, package or GGUF file to a loaded model."""
