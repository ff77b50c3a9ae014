"""Contents of a trace: sites, arrays, texts, tokens and words."""
