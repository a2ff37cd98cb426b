"""Several requests of one call, run together, their events in the order they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from contract.generation import Event, GenerateRequest

MAX_CONCURRENT = 32
"""Prompts of one call in flight at once; the rest wait their turn here rather than fill the queue."""

Generate = Callable[[GenerateRequest], AsyncGenerator[Event, None]]
_Queue = asyncio.Queue[tuple[int, Event] | Exception | None]


async def merge(
    generate: Generate, requests: Sequence[GenerateRequest]
) -> AsyncGenerator[tuple[int, Event], None]:
    """Events with the position of their request. The first fault ends all; so does closing this generator."""
    if len(requests) == 1:
        async with aclosing(generate(requests[0])) as events:
            async for event in events:
                yield 0, event
        return
    # Bounded, so that a slow reader slows the requests down.
    queue: _Queue = asyncio.Queue(4 * MAX_CONCURRENT)
    gate = asyncio.Semaphore(MAX_CONCURRENT)
    pumps = [
        asyncio.create_task(_pump(index, generate(request), gate, queue))
        for index, request in enumerate(requests)
    ]
    running = len(pumps)
    try:
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(
    index: int, events: AsyncGenerator[Event, None], gate: asyncio.Semaphore, queue: _Queue
) -> None:
    try:
        async with gate, aclosing(events):
            async for event in events:
                await queue.put((index, event))
    except Exception as error:
        await queue.put(error)
    else:
        await queue.put(None)
