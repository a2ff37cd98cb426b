"""A bar chart as SVG, written by hand: no plotting library is needed to look at three numbers an engine."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_WIDTH, _LABEL, _BAR, _GAP, _VALUE = 720, 190, 20, 6, 70
_OURS, _PEER = "#1f6feb", "#8b949e"

Panel = tuple[str, Sequence[tuple[str, float, bool]]]
"""Title, then label, value and whether it is ours, of each bar."""


def svg(panels: Sequence[Panel]) -> str:
    """One panel below the other; longer is better in all of them."""
    parts: list[str] = []
    top = 10
    for title, bars in panels:
        parts += _panel(title, bars, top)
        top += 34 + len(bars) * (_BAR + _GAP) + 14
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top}" '
        f'viewBox="0 0 {_WIDTH} {top}" font-family="sans-serif" font-size="13">\n'
        f'<rect width="{_WIDTH}" height="{top}" fill="#ffffff"/>\n'
    )
    return head + "".join(parts) + "</svg>\n"


def _panel(title: str, bars: Sequence[tuple[str, float, bool]], top: int) -> list[str]:
    longest = max((value for _, value, _ in bars), default=0) or 1
    parts = [f'<text x="10" y="{top + 18}" font-weight="bold">{escape(title)}</text>\n']
    room = _WIDTH - _LABEL - _VALUE
    for index, (label, value, ours) in enumerate(bars):
        y = top + 30 + index * (_BAR + _GAP)
        width = max(1.0, room * value / longest)
        color = _OURS if ours else _PEER
        parts.append(f'<text x="{_LABEL - 8}" y="{y + 15}" text-anchor="end">{escape(label)}</text>\n')
        parts.append(f'<rect x="{_LABEL}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{color}"/>\n')
        parts.append(f'<text x="{_LABEL + width + 6:.1f}" y="{y + 15}">{value:.1f}</text>\n')
    return parts
