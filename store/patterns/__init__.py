"""The pattern language: a condition on (query position, key position), parsed and never evaluated as Python."""
