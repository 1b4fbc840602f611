"""Draws the states of an election as SVG, from the transition table: `python docs/_ext/states.py` writes the file.

Where a phase stands is decided here, by hand; which arrows there are, and their labels, the table says. A test compares
the committed file with what this prints.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from celery_highlander.election.contest import AT_WORK, HOLDING, Phase
from celery_highlander.election.protocol import TRANSITIONS

SVG = Path(__file__).parent.parent / "explanation" / "election-states.svg"

_WIDTH, _HEIGHT = 1200, 730
_HALF_WIDTH, _HALF_HEIGHT = 84, 44
_PLACES: dict[Phase, tuple[float, float]] = {
    Phase.STANDBY: (120, 220),
    Phase.BEGINNING: (400, 220),
    Phase.WAITING: (680, 220),
    Phase.LEADING: (1030, 220),
    Phase.RELEASING: (400, 430),
    Phase.STOPPING: (720, 430),
    Phase.LOST: (1030, 540),
}
_BENDS: dict[tuple[Phase, Phase], float] = {
    (Phase.STANDBY, Phase.BEGINNING): 26,
    (Phase.BEGINNING, Phase.STANDBY): 26,
    (Phase.BEGINNING, Phase.LEADING): 106,
    (Phase.WAITING, Phase.STANDBY): -160,
    (Phase.LEADING, Phase.LOST): -30,
    (Phase.STANDBY, Phase.RELEASING): 22,
    (Phase.RELEASING, Phase.STANDBY): 34,
    (Phase.LEADING, Phase.RELEASING): 10,
    (Phase.LEADING, Phase.STOPPING): 0,
    (Phase.LOST, Phase.STANDBY): 262,
}
"""How far an arrow swings out to its left, in pixels; none is straight."""

_ALONG: dict[tuple[Phase, Phase], float] = {
    (Phase.LEADING, Phase.RELEASING): 0.4,
    (Phase.LEADING, Phase.STOPPING): 0.55,
    (Phase.LOST, Phase.STANDBY): 0.4,
    (Phase.RELEASING, Phase.STANDBY): 0.45,
    (Phase.STANDBY, Phase.RELEASING): 0.55,
    (Phase.WAITING, Phase.RELEASING): 0.5,
    (Phase.WAITING, Phase.STANDBY): 0.6,
}
"""Where the label stands on an arrow, from 0 (its beginning) to 1."""

_STYLE = """
  .paper { fill: #ffffff }
  .phase { fill: #f3f4f6; stroke: #6b7280; stroke-width: 1.5 }
  .held { fill: #e0ecff; stroke: #2f6fdb }
  .work { fill: #dff3e3; stroke: #1f8a4c }
  .renewed { stroke-width: 3 }
  .arrow { fill: none; stroke: #4b5563; stroke-width: 1.4 }
  text { font-family: system-ui, "DejaVu Sans", sans-serif; font-size: 13px; fill: #111827; text-anchor: middle }
  .name { font-weight: 700; font-size: 15px }
  .stays { font-size: 10.5px; fill: #4b5563 }
  .event { paint-order: stroke; stroke: #ffffff; stroke-width: 5px; stroke-linejoin: round }
  .legend { text-anchor: start }
"""

_TIP = (
    '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" '
    'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="#4b5563"/></marker></defs>'
)


def edges() -> dict[tuple[Phase, Phase], list[str]]:
    """Return the events of each pair of phases, in the order of the table."""
    found: dict[tuple[Phase, Phase], list[str]] = {}
    for (phase, event), (_, outcomes) in TRANSITIONS.items():
        for after in sorted(outcomes, key=lambda outcome: list(Phase).index(outcome)):
            found.setdefault((phase, after), []).append(event.__name__)
    return found


def svg() -> str:
    """Return the picture."""
    all_edges = edges()
    arrows = [_arrow(*pair, events) for pair, events in all_edges.items() if pair[0] is not pair[1]]
    boxes = [_box(phase, all_edges.get((phase, phase), [])) for phase in Phase]
    title = "The phases of one singleton's contest on one node, and the events that lead from one to another"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
            f"<title>{title}</title>",
            "<!-- Made from celery_highlander/election/protocol.py by docs/_ext/states.py; do not edit. -->",
            f"<style>{_STYLE}</style>",
            _TIP,
            f'<rect class="paper" width="{_WIDTH}" height="{_HEIGHT}" rx="10"/>',
            *(line for line, _ in arrows),
            *boxes,
            *(label for _, label in arrows),
            *_legend(),
            "</svg>",
            "",
        ]
    )


def _classes(phase: Phase) -> str:
    kind = "work" if phase in AT_WORK else "held" if phase is not Phase.STANDBY else ""
    return " ".join(filter(None, ("phase", kind, "renewed" if phase in HOLDING else "")))


def _box(phase: Phase, stays: list[str]) -> str:
    x, y = _PLACES[phase]
    lines = _wrapped(stays)
    top = y + 4 - 6 * len(lines)
    text = [f'<text class="name" x="{x}" y="{top}">{phase.value}</text>']
    text += [
        f'<text class="stays" x="{x}" y="{top + 14 + 12 * number}">{line}</text>' for number, line in enumerate(lines)
    ]
    box = (
        f'<rect class="{_classes(phase)}" x="{x - _HALF_WIDTH}" y="{y - _HALF_HEIGHT}" '
        f'width="{2 * _HALF_WIDTH}" height="{2 * _HALF_HEIGHT}" rx="12"/>'
    )
    return box + "".join(text)


def _wrapped(names: list[str], width: int = 24) -> list[str]:
    lines: list[str] = []
    for name in names:
        if lines and len(lines[-1]) + len(name) + 2 <= width:
            lines[-1] += f", {name}"
        else:
            lines.append(name)
    return lines


def _arrow(before: Phase, after: Phase, events: list[str]) -> tuple[str, str]:
    (x0, y0), (x1, y1) = _PLACES[before], _PLACES[after]
    length = math.hypot(x1 - x0, y1 - y0)
    left = ((y1 - y0) / length, -(x1 - x0) / length)  # to the left of the way, y pointing down
    bend = 2 * _BENDS.get((before, after), 0)
    cx, cy = (x0 + x1) / 2 + left[0] * bend, (y0 + y1) / 2 + left[1] * bend
    sx, sy = _border(x0, y0, cx, cy)
    ex, ey = _border(x1, y1, cx, cy)
    t = _ALONG.get((before, after), 0.5)
    lx, ly = ((1 - t) ** 2 * a + 2 * t * (1 - t) * c + t**2 * b for a, c, b in ((sx, cx, ex), (sy, cy, ey)))
    line = f'<path class="arrow" d="M{sx:.0f} {sy:.0f}Q{cx:.0f} {cy:.0f} {ex:.0f} {ey:.0f}" marker-end="url(#tip)"/>'
    start = ly + 4 - 7.5 * (len(events) - 1)
    label = "".join(
        f'<text class="event" x="{lx:.0f}" y="{start + 15 * number:.0f}">{event}</text>'
        for number, event in enumerate(events)
    )
    return line, label


def _border(x: float, y: float, towards_x: float, towards_y: float) -> tuple[float, float]:
    """Return where the line from the middle of a box to a point leaves the box."""
    dx, dy = towards_x - x, towards_y - y
    scale = min(_HALF_WIDTH / abs(dx) if dx else math.inf, _HALF_HEIGHT / abs(dy) if dy else math.inf)
    return x + dx * scale, y + dy * scale


def _legend() -> list[str]:
    rows = (
        ("phase", "has no lock"),
        ("phase held", "has the lock, does not act"),
        ("phase work", "work may be running"),
        ("phase renewed", "thick border: heartbeats renew its term"),
    )
    found = []
    for number, (classes, text) in enumerate(rows):
        y = 22 + 24 * number
        found.append(f'<rect class="{classes}" x="880" y="{y}" width="28" height="14" rx="4"/>')
        found.append(f'<text class="legend" x="918" y="{y + 12}">{text}</text>')
    found.append(
        f'<text class="legend stays" x="24" y="{_HEIGHT - 16}">Small print in a box: events after which the phase may '
        "stay the same. An event that is nowhere at a phase cannot happen in it.</text>"
    )
    return found


if __name__ == "__main__":
    SVG.write_text(svg())
    sys.stdout.write(f"{SVG}\n")
