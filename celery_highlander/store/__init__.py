"""The tables in PostgreSQL: their migrations, the lock session's statements, fencing and status (SQLAlchemy, no Celery)."""
