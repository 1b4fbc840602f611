"""Singleton tasks: one run at a time for each key."""
