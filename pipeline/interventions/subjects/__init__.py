"""Subjects of interventions: a model and its examples, from a job file or from a store."""
