"""The election protocol, pure: no threads, no clock, no SQL, no Celery; standard library only.

`protocol` has the theory of operation and the table of one singleton's contest on one node; `node` folds the
contests of a node over its one lock session; `lease` is the arithmetic, `keys` the lock keys, `placement` who takes
how many.
"""
