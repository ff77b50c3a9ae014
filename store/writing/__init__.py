"""Operations that change stores: write, commit, verify, merge, convert, drop, and garbage collection."""
