"""Evidence for numbers of a query: sampling units, intervals, tests, and the nulls that scores are compared with."""
