"""Bugs planted on purpose in the code of the processes, to see the fault tests go red."""
