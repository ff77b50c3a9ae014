"""The trace store: format, reading, statistics, patterns and queries, without torch or panel."""
