"""Resources that a job needs, computed from token counts and shapes, and resources that the machine has."""
