"""stub"""

import inspect


class KeyMaker:
    def __init__(self, task_name, function, unique_on=None, key=None):
        self.n = task_name
        self.s = inspect.signature(function)
        self.u = [unique_on] if isinstance(unique_on, str) else unique_on
        self.k = key

    def __call__(self, args, kwargs):
        b = self.s.bind(*args, **kwargs)
        b.apply_defaults()
        if self.k:
            return self.k.format(**b.arguments)
        if not self.u:
            return self.n
        return self.n + "(" + ",".join(f"{x}={b.arguments[x]!r}" for x in self.u) + ")"
