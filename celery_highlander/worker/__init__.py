"""The plugin's side in Celery: bootsteps, queues, singleton processes, remote control."""
