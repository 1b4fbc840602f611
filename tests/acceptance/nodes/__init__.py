"""What a user sees of a cluster, through the fixtures of pytest-celery: on this machine, and with Docker."""
