"""Hand-written canvas components: a Python frame in, events out, no dependency, no build step."""
