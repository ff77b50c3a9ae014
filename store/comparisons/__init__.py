"""Questions that compare: similar heads, two patterns, groups of examples, correlations, two stores."""
