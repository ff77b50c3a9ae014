"""Job files that ship with the package and run as they are."""
