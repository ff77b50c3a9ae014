"""How a store grows and shrinks: write, commit, verify, merge, convert, drop, collect."""
