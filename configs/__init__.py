"""Job files that are part of the package and run unchanged."""
