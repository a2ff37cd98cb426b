"""When a request may be sent again, and after how long."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from client.errors import ClientError, ConnectError


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Tried again is only what the server cannot have begun: a failed connect, a refusal with Retry-After."""

    retries: int = 2
    first_delay_s: float = 0.25
    max_delay_s: float = 8.0

    def delay_s(
        self, error: ClientError, attempt: int, jitter: Callable[[], float] = random.random
    ) -> float | None:
        """How long to wait before attempt ``attempt + 1`` (the first is 0); ``None``: give up.

        Doubles with each attempt, spread over half to all of it; what the server asks for is a minimum.
        A server that asks for more patience than ``max_delay_s`` is not waited for.
        """
        if attempt >= self.retries:
            return None
        if not isinstance(error, ConnectError) and error.retry_after_s is None:
            return None
        asked = error.retry_after_s or 0.0
        if asked > self.max_delay_s:
            return None
        backoff = min(self.max_delay_s, self.first_delay_s * 2.0**attempt)
        return max(asked, backoff * (0.5 + jitter() / 2))
