"""The judge's endpoint: bounded concurrency, bounded patience, and a key that nothing ever repeats."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lit_reason.__main__ import one_line
from lit_reason.types import UserError

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState

PASSING = frozenset({408, 409, 425, 429})
"""Refusals that may pass, beside 5xx."""

BACKOFF_SECONDS = 0.5
"""Before the first retry; doubled each time up to `LONGEST_WAIT_SECONDS`, with as much noise again."""

LONGEST_WAIT_SECONDS = 30.0

LARGEST_ANSWER = 1_000_000
"""Bytes; a verdict takes a hundred."""


class PassingError(Exception):
    """An attempt failed in a way that the next may not.

    Attributes:
        status: what a judgement says when no attempt succeeds.
        wait: seconds the server asks for.
    """

    def __init__(self, status: str, wait: float = 0.0) -> None:
        super().__init__(status)
        self.status, self.wait = status, wait


class RefusedError(Exception):
    """The server will not judge this text, though it judges others."""


@dataclass(kw_only=True, frozen=True, slots=True)
class Limits:
    """How much to ask of a server.

    Attributes:
        concurrency: judgements under way at a time.
        timeout_seconds: for one attempt, from connecting to the last byte.
        retries: further attempts for one judgement.
        patience_seconds: after which no further attempt of a judgement starts.
    """

    concurrency: int
    timeout_seconds: float
    retries: int
    patience_seconds: float


@dataclass(slots=True)
class Burst:
    """What judgements under way in one event loop share; it ends with the last of them.

    An HTTP client belongs to the loop it was made in, and rewards are scored in loops made anew: a client that lived
    longer would hold connections that nobody can close.
    """

    http: httpx.AsyncClient
    room: asyncio.Semaphore
    users: int = 0
    turns: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    known: dict[str, Any] = field(default_factory=dict)


class Endpoint:
    """An OpenAI-compatible chat endpoint.

    Args:
        url: its address; `/v1` is added where it has no path, and `/chat/completions` always.
        api_key_env: name of the environment variable that holds the key.
        limits: how much to ask of it.

    Raises:
        UserError: the address is none, or holds secrets; the variable is not set, or no key.
    """

    def __init__(self, url: str, api_key_env: str | None, limits: Limits) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UserError(f"reward 'judge': url must be an address such as http://localhost:8000/v1, got {url!r}")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UserError(
                "reward 'judge': url must be an address without user, password and query, for it is written into logs "
                "and configurations; name the variable that holds the key in api_key_env"
            )
        base = url.rstrip("/").removesuffix("/chat/completions")
        self.url = f"{base}{'' if urlsplit(base).path else '/v1'}/chat/completions"
        self.api_key_env, self.limits = api_key_env, limits
        self._bursts: dict[asyncio.AbstractEventLoop, Burst] = {}
        self._reached = self._judged = False
        self._fatal: str | None = None
        if api_key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", api_key_env):  # maybe the key: not quoted
            raise UserError("reward 'judge': api_key_env must be the name of an environment variable, not a key")
        self._key()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bursts": {}}

    @asynccontextmanager
    async def burst(self) -> AsyncIterator[Burst]:
        """What this loop's judgements share; the last to leave closes the connections."""
        import httpx

        loop = asyncio.get_running_loop()
        if loop not in self._bursts:
            # `_attempt` keeps the time of the rest: httpx's limits are for each read, which a trickle never exceeds
            timeout = httpx.Timeout(None, connect=self.limits.timeout_seconds / 2)
            http = httpx.AsyncClient(verify=self._verify(), timeout=timeout)
            self._bursts[loop] = Burst(http, asyncio.Semaphore(self.limits.concurrency))
        burst = self._bursts[loop]
        burst.users += 1
        try:
            yield burst
        finally:
            burst.users -= 1
            if not burst.users:
                del self._bursts[loop]
                await burst.http.aclose()

    def reach(self) -> None:
        """See that a server listens, whatever it says to a request that asks for nothing.

        Raises:
            PassingError: none does, for now.
        """
        import httpx

        try:
            httpx.get(self.url, verify=self._verify(), timeout=self.limits.timeout_seconds / 2)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise PassingError("unreachable") from error
        except httpx.HTTPError:  # somebody answered something, or has not yet
            return

    def _verify(self) -> ssl.SSLContext | bool:
        return _tls() if self.url.startswith("https") else False

    async def complete(self, http: httpx.AsyncClient, body: Mapping[str, Any]) -> object:
        """The content of the one message the server answers with, None where its answer holds none.

        Raises:
            PassingError: this attempt failed.
            RefusedError: the server will not judge this text.
            UserError: no attempt will ever succeed.
        """
        if self._fatal is not None:
            raise UserError(self._fatal)
        status, headers, answer = await self._attempt(http, body)
        if status in PASSING or status >= 500:
            raise PassingError("unavailable", _retry_after(headers.get("retry-after")))
        if status != 200:
            self._refused(status, answer)
        self._judged = True
        try:
            (choice,) = json.loads(answer)["choices"]
            content: object = choice["message"]["content"]
        except (ValueError, RecursionError, LookupError, TypeError):
            return None
        return content

    async def _attempt(self, http: httpx.AsyncClient, body: Mapping[str, Any]) -> tuple[int, httpx.Headers, bytes]:
        import httpx

        key = self._key()
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        try:
            async with (
                asyncio.timeout(self.limits.timeout_seconds),
                http.stream("POST", self.url, json=body, headers=headers) as response,
            ):
                self._reached = True
                answer = b""
                async for part in response.aiter_bytes():
                    answer += part
                    if len(answer) > LARGEST_ANSWER:
                        raise PassingError("garbage")
                return response.status_code, response.headers, answer
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if self._reached:
                raise PassingError("unavailable") from None
            raise PassingError("unreachable") from error
        except (TimeoutError, httpx.TransportError, httpx.DecodingError):
            raise PassingError("unavailable") from None

    def _refused(self, status: int, answer: bytes) -> None:
        """Say why an answer is no judgement: for good, or of this text only."""
        said = self._said(answer)
        if status == 401 or (status == 403 and not self._judged):
            named = (
                f"'{self.api_key_env}' holds no key that it takes" if self.api_key_env else "name one in api_key_env"
            )
            self._fatal = f"reward 'judge': {self.url} refuses the key ({status}: {said}): {named}"
        elif status in {404, 405} or 300 <= status < 400:
            self._fatal = f"reward 'judge': {self.url} does not serve this model ({status}: {said}): mend url or model"
        elif not self._judged:
            self._fatal = (
                f"reward 'judge': {self.url} refuses the request ({status}: {said}): mend response_format or parameters"
            )
        else:
            raise RefusedError
        raise UserError(self._fatal)

    def _said(self, answer: bytes) -> str:
        """What an error answer says, on one line, without the key."""
        text = answer.decode(errors="replace")
        try:
            body = json.loads(text)
            body = body.get("error", body) if isinstance(body, dict) else body
            text = str(body.get("message", body) if isinstance(body, dict) else body)
        except (ValueError, RecursionError):
            pass
        key = self._key()
        text = one_line(text if key is None else text.replace(key, "***"))
        return f"{text[:200]}..." if len(text) > 200 else text or "it says nothing"

    def _key(self) -> str | None:
        """The key, read anew each time so that no object, copy or checkpoint holds it."""
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise UserError(f"reward 'judge': api_key_env: the environment variable '{self.api_key_env}' is not set")
        if not key.isascii() or not key.isprintable() or " " in key:  # an HTTP library would quote it in its complaint
            raise UserError(f"reward 'judge': api_key_env: '{self.api_key_env}' holds characters that no key has")
        return key


def waiting(state: RetryCallState) -> float:
    """Seconds before the next attempt: exponential with noise, and at least what the server asks for."""
    from tenacity import wait_exponential, wait_random

    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.wait if isinstance(error, PassingError) else 0.0
    noisy = wait_exponential(multiplier=BACKOFF_SECONDS, max=LONGEST_WAIT_SECONDS) + wait_random(0, BACKOFF_SECONDS)
    return max(asked, noisy(state))


def _retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header, in either of its forms, asks for; 0 where it asks for nothing."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    aware = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (aware - datetime.now(UTC)).total_seconds())


@functools.cache
def _tls() -> ssl.SSLContext:
    """Certificates, which take a while to read, once a process."""
    import httpx

    return httpx.create_ssl_context()
