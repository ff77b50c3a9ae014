"""Reduction of query and key to the stored arrays, by torch operations, a C++ kernel or a Triton kernel."""
