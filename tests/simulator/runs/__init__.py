"""Singleton runs in virtual time: real `RunTable`s, a modelled PostgreSQL, and faults drawn from a seed."""
