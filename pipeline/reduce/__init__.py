"""Query and key to what is stored: torch operations, a C++ kernel and a Triton kernel."""
