"""Records to token sequences, and token counts to batches."""
