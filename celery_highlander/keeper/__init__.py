"""The keeper: the process beside a worker that owns the lock session and runs no user code (no Celery in here)."""
