"""A small shop that uses celery-highlander, and a demonstration of what happens to it when things break."""
