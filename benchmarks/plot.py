"""A bar chart as SVG, written by hand: no plotting library is needed to look at a few numbers an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

_WIDTH, _LABEL, _BAR, _GAP, _VALUE = 720, 190, 20, 6, 110
_OURS, _PEER, _BOUND = "#1f6feb", "#8b949e", "#d1242f"


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    value: float
    is_ours: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure; longer is better."""

    title: str
    bars: Sequence[Bar]
    bounds: Mapping[str, float] = field(default_factory=dict)
    """The most that the machine allows, by label: a mark on the bar."""


def svg(panels: Sequence[Panel]) -> str:
    """One panel below the other."""
    parts: list[str] = []
    top = 10
    for panel in panels:
        parts += _panel(panel, top)
        top += 34 + len(panel.bars) * (_BAR + _GAP) + 14
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top}" '
        f'viewBox="0 0 {_WIDTH} {top}" font-family="sans-serif" font-size="13">\n'
        f'<rect width="{_WIDTH}" height="{top}" fill="#ffffff"/>\n'
    )
    return head + "".join(parts) + "</svg>\n"


def _panel(panel: Panel, top: int) -> list[str]:
    longest = max([*(bar.value for bar in panel.bars), *panel.bounds.values()], default=0) or 1
    title = escape(panel.title) + ("; the mark is the machine's bound" if panel.bounds else "")
    parts = [f'<text x="10" y="{top + 18}" font-weight="bold">{title}</text>\n']
    room = _WIDTH - _LABEL - _VALUE
    for index, bar in enumerate(panel.bars):
        y = top + 30 + index * (_BAR + _GAP)
        width = end = max(1.0, room * bar.value / longest)
        color = _OURS if bar.is_ours else _PEER
        parts.append(f'<text x="{_LABEL - 8}" y="{y + 15}" text-anchor="end">{escape(bar.label)}</text>\n')
        parts.append(f'<rect x="{_LABEL}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{color}"/>\n')
        if bar.label in panel.bounds:
            x = _LABEL + room * panel.bounds[bar.label] / longest
            end = max(width, x - _LABEL)
            parts.append(f'<path d="M{x:.1f} {y}v{_BAR}" stroke="{_BOUND}" stroke-width="3"/>\n')
        said = escape(f"{bar.value:.1f} {bar.note}".strip())
        parts.append(f'<text x="{_LABEL + end + 6:.1f}" y="{y + 15}">{said}</text>\n')
    return parts
