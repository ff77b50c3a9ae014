"""Data of a store for the pages: cached within a size limit and shared by all sessions."""
