"""Where async rewards wait: an event loop in a thread of its own, whatever the calling thread runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from lit_reason.findings import Finding


class Loop:
    """Runs coroutines at once, from the first one until it is closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds them weakly
        self._thread = threading.Thread(target=self._loop.run_forever, name="async rewards", daemon=True)
        self._thread.start()

    def run(self, judging: Coroutine[Any, Any, list[Finding]], done: Callable[[list[Finding]], None]) -> None:
        """Have findings awaited, and `done` called with them in the loop's thread; returns at once."""

        async def finish() -> None:
            done(await judging)

        def begin() -> None:
            task = self._loop.create_task(finish())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._loop.call_soon_threadsafe(begin)

    def close(self) -> None:
        """Cancel what still waits, and end the thread."""

        async def cancel() -> None:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._loop.shutdown_asyncgens()

        asyncio.run_coroutine_threadsafe(cancel(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
