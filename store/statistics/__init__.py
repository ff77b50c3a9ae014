"""Statistics of heads: definitions, corpus means, specialisation."""
