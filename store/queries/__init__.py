"""Questions to a corpus: scan, score, evidence, relations, minimal pairs."""
