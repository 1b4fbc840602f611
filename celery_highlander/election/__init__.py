"""The election protocol, pure: no threads, no clock, no SQL, no Celery; standard library only.

`protocol` has the theory of operation and the table of one singleton's contest on one node, `contest` its values;
`node` folds the contests of a node over its one lock session, `statements` are its events and effects, `reconnects` its
pauses between two sessions, `placement` says who takes how many; `lease` is the arithmetic, `keys` the lock keys.
"""
