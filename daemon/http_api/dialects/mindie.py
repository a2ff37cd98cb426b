"""MindIE's generate endpoints and, where a setting says so, TGI's."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response

from contract.generation import Delta, Started
from daemon.http_api import bodies, sse
from daemon.http_api.dialects.mindie_body import Generate
from daemon.http_api.dialects.mindie_format import MindieFormat, TgiFormat
from daemon.http_api.errors import Family
from daemon.http_api.exchange import Computed
from daemon.http_api.gathering import gather, raise_ending
from daemon.http_api.options import GenerateFlavour
from daemon.service.facade import Service


class Mindie:
    def __init__(self, service: Service, flavour: GenerateFlavour) -> None:
        self._service = service
        self.flavour: GenerateFlavour = flavour
        self.family = Family.TGI if flavour == "tgi" else Family.MINDIE

    def answer(self, asked: Generate, *, in_array: bool = False) -> Response:
        """``in_array``: a whole answer comes in a one-element array, as on ``/``."""
        if asked.stream:
            return sse.EventStream(self.family, self._chunks(asked))
        return Computed(self.family, lambda: self._complete(asked, in_array))

    async def _complete(self, asked: Generate, in_array: bool) -> Response:
        gathered = await gather(self._service.generate(asked.request), 1)
        result = self._format(asked).whole(gathered)
        return bodies.json_response([result] if in_array else result)

    async def _chunks(self, asked: Generate) -> AsyncGenerator[bytes, None]:
        form = self._format(asked)
        async with aclosing(self._service.generate(asked.request)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    for value in form.events(event):
                        yield sse.event(value)
                elif isinstance(event, Started):
                    form.start(event)
                else:
                    raise_ending(event)

    def _format(self, asked: Generate) -> MindieFormat:
        return TgiFormat(asked) if self.flavour == "tgi" else MindieFormat(asked)
