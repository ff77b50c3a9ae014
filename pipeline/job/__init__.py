"""A job: prepare, project, run, resume and repair it, or trace one input."""
