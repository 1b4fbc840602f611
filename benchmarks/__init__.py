"""Measurements of failover time and idle cost (`python -m benchmarks`); the results are in results.md beside this file."""
