"""The tables in PostgreSQL: migrations, the lock session's statements, fencing, status (SQLAlchemy, no Celery)."""
