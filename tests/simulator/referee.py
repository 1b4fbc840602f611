"""Who is really at work, and whether that may be: the invariants, and the trace that explains a violation."""

from __future__ import annotations


class InvariantError(AssertionError):
    """An invariant does not hold."""


class Referee:
    """Watches the whole cluster with the one true clock, which nobody in it can see."""

    def __init__(self, tracing: bool, effects_only: bool = False) -> None:
        self.now = 0.0
        self._effects_only = effects_only
        self.tracing = tracing
        self.trace: list[str] = []
        self.at_work: dict[str, dict[int, int]] = {}  # singleton -> machine -> token
        self.elections: list[tuple[float, str, int]] = []
        self._highest: dict[str, int] = {}

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        if self.tracing:
            self.trace.append(f"{self.now:9.4f}  {text}")

    def violated(self, what: str) -> None:
        """Stop the schedule."""
        self.note(f"VIOLATION: {what}")
        raise InvariantError(what)

    def suspected(self, what: str) -> None:
        """A node believes what it must not, though nothing may come of it; stop, unless only effects count."""
        if not self._effects_only:
            self.violated(what)

    def began(self, name: str, token: int) -> None:
        """A token was given out: above every earlier one."""
        if token <= self._highest.get(name, -1):
            self.violated(f"token {token:#x} of {name} is not above {self._highest[name]:#x}")
        self._highest[name] = token
        if self.tracing:
            self.note(f"server: term {token:#x} of {name} on record")

    def marked(self, name: str, token: int) -> None:
        """A stopped mark was left: only for dead work."""
        if self.tracing:
            self.note(f"server: stopped mark of {name} for {token:#x}")
        if token in self.at_work.get(name, {}).values():
            self.violated(f"a stopped mark for term {token:#x} of {name}, whose work is alive")

    def started(self, name: str, machine: int, token: int) -> None:
        """Work starts, or goes on after its machine stood still: nobody else is at work."""
        working = self.at_work.setdefault(name, {})
        if working:
            others = ", ".join(f"node {other} (term {its:#x})" for other, its in working.items())
            self.violated(f"{name}: node {machine} starts to work under term {token:#x} beside {others}")
        working[machine] = token

    def elected(self, name: str, machine: int, token: int) -> None:
        """Work starts under a new term."""
        self.started(name, machine, token)
        self.elections.append((self.now, name, machine))

    def suspended(self, name: str, machine: int) -> None:
        """Work cannot act for the time being, as its machine stands still."""
        self.at_work.get(name, {}).pop(machine, None)

    def died(self, name: str, machine: int, token: int, clock: float, lease_deadline: float) -> None:
        """Work is dead at `clock`, by its machine's own clock: in time."""
        if self.tracing:
            self.note(f"node {machine}: work of {name} is dead, {lease_deadline - clock:.3f} s before its lease ends")
        if self.at_work.get(name, {}).pop(machine, None) is not None and clock > lease_deadline:
            late = clock - lease_deadline
            self.violated(f"{name}: work of term {token:#x} on node {machine} outlived its lease by {late:.3f} s")
