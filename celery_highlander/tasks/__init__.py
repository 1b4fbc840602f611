"""Singleton tasks: at most one run of a task at a time, or one for each key."""
