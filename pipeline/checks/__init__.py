"""The capture compared with the model's own attention."""
