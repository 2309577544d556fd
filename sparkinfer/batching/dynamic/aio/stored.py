"""Results that a cache keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from sparkinfer.batching.dynamic.types import AsyncCache
from sparkinfer.logs import get_logger

_log = get_logger(__name__)


class StoredResults:
    """Looks items up in a cache before they wait, and keeps their results afterwards.

    Args:
        cache: one that fails costs time, and no call its result.
    """

    def __init__(self, cache: AsyncCache[Any, Any]) -> None:
        self.cache = cache
        self._tasks: set[asyncio.Task[None]] = set()

    async def results(
        self, contents: list[Any], new_results: Callable[[list[Any]], Awaitable[list[Any]]]
    ) -> list[Any]:
        """Returns one result for each item, in their order.

        Args:
            contents: the items.
            new_results: returns those of the items that the cache does not know.
        """
        found = await asyncio.gather(*map(self._get, contents))
        unknown = [place for place, result in enumerate(found) if result is None]
        if unknown:
            made = await new_results([contents[place] for place in unknown])
            for place, result in zip(unknown, made, strict=True):
                found[place] = result
                self._keep(contents[place], result)
            await asyncio.sleep(0)  # the cache sees results before their caller changes them
        return found

    async def _get(self, content: Any) -> Any:
        try:
            return await self.cache.get(content)
        except Exception as error:
            _log.warning("a cache failed to look up an item: %s: %s", type(error).__name__, error)
            return None

    def _keep(self, content: Any, result: Any) -> None:
        """Has a result kept, which goes on while its caller does."""
        task = asyncio.ensure_future(self._set(content, result))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _set(self, content: Any, result: Any) -> None:
        try:
            await self.cache.set(content, result)
        except Exception as error:
            _log.warning("a cache failed to keep a result: %s: %s", type(error).__name__, error)
