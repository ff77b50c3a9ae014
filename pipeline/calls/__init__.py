"""One attention call of a running model: the hook, its batch, its masks, and the buffers it ends in."""
