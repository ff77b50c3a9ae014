"""Preparation, projection, execution and repair of jobs, and tracing of single inputs."""
