"""Stop strings are found across parts, and nothing of one is shown before it is known not to be one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daemon.service.stopping import StopFinder

LETTERS = st.text("ab<", max_size=12)
STOPS = st.lists(st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=3)


def shown(finder: StopFinder, parts: list[str]) -> str:
    text = "".join([finder.push(part) for part in parts])
    return text + finder.flush()


@given(STOPS, st.lists(LETTERS, max_size=8), st.booleans())
def test_equals_a_search_of_the_whole(stops: list[str], parts: list[str], include: bool) -> None:
    whole = "".join(parts)
    ends = [whole.index(stop) + len(stop) for stop in stops if stop in whole]
    finder = StopFinder(stops, include_stop=include)
    text = shown(finder, parts)
    if not ends:
        assert finder.match is None
        assert text == whole
    else:
        assert finder.match in stops
        body = text.removesuffix(finder.match or "") if include else text
        assert whole.startswith(body + (finder.match or ""))


@given(STOPS, st.lists(LETTERS, max_size=8))
def test_nothing_is_taken_back(stops: list[str], parts: list[str]) -> None:
    finder = StopFinder(stops)
    text = shown(finder, parts)
    assert all(stop not in text for stop in stops)


def test_holds_the_longest_beginning() -> None:
    finder = StopFinder(["</s>", "END"])
    assert finder.push("a</") == "a"
    assert finder.push("s") == ""
    assert finder.push("x E") == "</sx "
    assert finder.push("ND more") == ""
    assert finder.match == "END"
    assert finder.push("ignored") == ""


def test_includes_the_stop_when_asked() -> None:
    finder = StopFinder(["。"], include_stop=True)
    assert finder.push("你好。再见") == "你好。"
