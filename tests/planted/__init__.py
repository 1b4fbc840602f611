"""Bugs that are planted on purpose, to see that the suite would find them."""
