"""Where async rewards wait: an event loop in a thread of its own, whatever the calling thread runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from lit_reason.findings import Finding

_PATIENCE = 1.0
"""Seconds that cancelled rewards get to clean up."""


class Loop:
    """Runs coroutines at once, from the first one until it is closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds them weakly
        self._thread = threading.Thread(target=self._loop.run_forever, name="async rewards", daemon=True)
        self._thread.start()

    def run(
        self,
        judging: Coroutine[Any, Any, list[Finding]],
        done: Callable[[list[Finding]], None],
        failed: Callable[[BaseException], list[Finding]],
    ) -> None:
        """Have findings awaited, and `done` called with them in the loop's thread; returns at once.

        Whatever else comes of it, `done` is called with what `failed` makes of it: somebody waits.
        """

        async def finish() -> None:
            try:
                findings = await judging
            except BaseException as error:  # noqa: BLE001 - not even what ends programs may leave the item behind
                findings = failed(error)
            done(findings)

        def begin() -> None:
            task = self._loop.create_task(finish())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._loop.call_soon_threadsafe(begin)

    def close(self) -> None:
        """Cancel what still waits, and end the thread; one that a reward keeps from it ends with the process."""

        async def cancel() -> None:
            for _ in range(2):  # what has just come must have begun: a coroutine that never does makes Python complain
                await asyncio.sleep(0)
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=_PATIENCE)  # some swallow it
            await self._loop.shutdown_asyncgens()

        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(cancel(), self._loop).result(2 * _PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE)
        if not self._thread.is_alive():
            self._loop.close()
