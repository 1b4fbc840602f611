"""The state diagram of an election, drawn from the protocol's own table of transitions."""

from __future__ import annotations

import math
from collections import defaultdict
from html import escape

from celery_highlander.election.contest import Phase
from celery_highlander.election.protocol import TRANSITIONS

WIDTH, HEIGHT = 1000, 640
BOX = (128, 44)
PLACES = {
    Phase.STANDBY: (120, 320),
    Phase.BEGINNING: (330, 110),
    Phase.WAITING: (590, 110),
    Phase.LEADING: (860, 220),
    Phase.STOPPING: (860, 430),
    Phase.RELEASING: (480, 320),
    Phase.LOST: (590, 560),
}
"""Where each phase is drawn; every one has to be here."""

_TIP = (
    "<defs><marker id='tip' viewBox='0 0 10 10' refX='9' refY='5' markerWidth='7' markerHeight='7' orient='auto'>"
    "<path d='M0,0 L10,5 L0,10 z' fill='#444'/></marker></defs>"
)
_FONT = "font-family='system-ui, sans-serif'"
_LINE = 13


def edges() -> dict[tuple[Phase, Phase], list[str]]:
    """Return the events that lead from one phase to another one."""
    found: dict[tuple[Phase, Phase], list[str]] = defaultdict(list)
    for (phase, event), (_, outcomes) in TRANSITIONS.items():
        for outcome in sorted(outcomes, key=lambda one: one.value):
            if outcome is not phase:
                found[phase, outcome].append(event.__name__)
    return dict(found)


def svg() -> str:
    """Return the diagram as an SVG document."""
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' role='img'>",
        "<title>The phases of an election on one node</title>",
        f"<rect width='{WIDTH}' height='{HEIGHT}' fill='white'/>",
        _TIP,
    ]
    both = edges()
    for (source, target), events in both.items():
        parts += _edge(source, target, events, bend=46 if (target, source) in both else 24)
    parts += [part for phase in Phase for part in _box(phase)]
    return "\n".join([*parts, "</svg>", ""])


def _box(phase: Phase) -> list[str]:
    x, y = PLACES[phase]
    width, height = BOX
    fill = "#d7f0dd" if phase is Phase.LEADING else "#eef2f7"
    size = f"width='{width}' height='{height}' rx='9'"
    return [
        f"<rect x='{x - width / 2:.0f}' y='{y - height / 2:.0f}' {size} fill='{fill}' stroke='#345'/>",
        f"<text x='{x}' y='{y + 5}' text-anchor='middle' font-size='16' {_FONT}>{phase.value}</text>",
    ]


def _edge(source: Phase, target: Phase, events: list[str], bend: float) -> list[str]:
    (x1, y1), (x2, y2) = PLACES[source], PLACES[target]
    length = math.hypot(x2 - x1, y2 - y1)
    across = (-(y2 - y1) / length, (x2 - x1) / length)  # to the right of the way, as the screen has it
    middle = ((x1 + x2) / 2 - across[0] * bend, (y1 + y2) / 2 - across[1] * bend)
    start, end = _rim(PLACES[source], middle), _rim(PLACES[target], middle)
    at = (
        (start[0] + 2 * middle[0] + end[0]) / 4 - across[0] * 10,
        (start[1] + 2 * middle[1] + end[1]) / 4 - across[1] * 10,
    )
    top = at[1] - (len(events) - 1) * _LINE / 2 + 4
    halo = "paint-order='stroke' stroke='white' stroke-width='4'"
    labels = [
        f"<text x='{at[0]:.0f}' y='{top + number * _LINE:.0f}' text-anchor='middle' font-size='11.5' {halo} "
        f"{_FONT}>{escape(event)}</text>"
        for number, event in enumerate(events)
    ]
    path = f"M{start[0]:.1f},{start[1]:.1f} Q{middle[0]:.1f},{middle[1]:.1f} {end[0]:.1f},{end[1]:.1f}"
    return [f"<path d='{path}' fill='none' stroke='#444' stroke-width='1.3' marker-end='url(#tip)'/>", *labels]


def _rim(place: tuple[float, float], towards: tuple[float, float]) -> tuple[float, float]:
    """Where the line from the middle of a box leaves it."""
    dx, dy = towards[0] - place[0], towards[1] - place[1]
    scale = min(
        (BOX[0] / 2 + 2) / abs(dx) if dx else math.inf,
        (BOX[1] / 2 + 2) / abs(dy) if dy else math.inf,
    )
    return place[0] + dx * scale, place[1] + dy * scale
