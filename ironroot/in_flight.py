"""The requests that are being answered, so that a process ends after the last of them and not in the middle."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from aiohttp import web

_LOOK = 0.02  # seconds


class InFlight:
    """Counts requests, as a middleware.

    aiohttp, once told to shut down, throws away what is still to come of a body: wait with ``over`` before that.
    """

    def __init__(self) -> None:
        self._count = 0
        self._ending = False

    @web.middleware
    async def middleware(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        """Counts one request from its head to its answer."""
        self._count += 1
        try:
            response = await handler(request)
        finally:
            self._count -= 1
        if self._ending:
            response.force_close()
        return response

    async def over(self, seconds: float) -> None:
        """Returns when none is left, or after ``seconds``. From now on each answer is the last on its connection."""
        self._ending = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._count:
                    await asyncio.sleep(_LOOK)
