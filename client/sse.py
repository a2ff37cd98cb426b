"""Server-sent events: bytes in, ``data`` out.

Lines end at LF or CRLF only: a JSON string may hold U+2028 and other characters at which text is often split.
"""

from __future__ import annotations

from collections.abc import Iterator


class EventDecoder:
    """Collects bytes and yields the data of each complete event."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, received: bytes) -> Iterator[str]:
        *lines, self._rest = (self._rest + received).split(b"\n")
        for line in (line.removesuffix(b"\r") for line in lines):
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                data, self._data = b"\n".join(self._data), []
                yield data.decode("utf-8", "replace")

    def finish(self) -> Iterator[str]:
        """What an end of the stream without a last empty line still completes."""
        yield from self.feed(b"\n\n")
