"""Measurements of failover time and idle cost (`python -m benchmarks`); results.md beside this file has the results."""
