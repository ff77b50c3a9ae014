"""Data that pictures need from a store: bounded, cached and shared by all sessions."""
