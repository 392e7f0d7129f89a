"""A server that speaks the chat protocol and judges by a rule of the test's, or misbehaves when it is told to."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import torch

from lit_reason.reward import Judgement
from lit_reason.rewards.judge import Judge
from lit_reason.types import Problem, Rollout

Fault = Callable[["_Handler", "Request"], bool]
"""Answers in the judge's place, True; or only delays it, False."""


@dataclass
class Request:
    headers: dict[str, str]
    body: dict[str, Any]
    at: float

    @property
    def system(self) -> str:
        return self.body["messages"][0]["content"]

    @property
    def user(self) -> str:
        return self.body["messages"][1]["content"]

    @property
    def nonce(self) -> str:
        return re.search(r"the text (\w+)$", self.system)[1]

    @property
    def candidate(self) -> str:
        return re.search(r"<<BEGIN CANDIDATE (\w+)>>\n(.*)\n<<END CANDIDATE \1>>", self.user, re.DOTALL)[2]


@dataclass(kw_only=True)
class JudgeServer:
    """A running server; use as a context manager. Faults are used up one a request; the last one may stay for ever."""

    judge: Callable[[Request], float] = lambda request: 0.75
    faults: deque[Fault] = field(default_factory=deque)
    always: Fault | None = None
    seen: list[Request] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.lock = threading.Lock()
        self.busy = self.busiest = 0
        self.leaving = threading.Event()
        handler = type("Handler", (_Handler,), {"court": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.request_queue_size = 128
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.leaving.set()
        self.http.shutdown()
        self.http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    court: JudgeServer

    def do_POST(self) -> None:
        court = self.court
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request = Request(dict(self.headers), body, time.monotonic())
        with court.lock:
            court.seen.append(request)
            court.busy += 1
            court.busiest = max(court.busiest, court.busy)
            fault = court.faults.popleft() if court.faults else court.always
        try:
            if self.path != "/v1/chat/completions":
                self.send(404, {"detail": "Not Found"})
            elif fault is None or not fault(self, request):
                verdict = {"reason": "so", "score": court.judge(request), "nonce": request.nonce}
                self.say(json.dumps(verdict))
        finally:
            with court.lock:
                court.busy -= 1

    def say(self, content: object) -> None:
        message = {"role": "assistant", "content": content}
        self.send(200, {"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": message}]})

    def send(self, status: int, body: object, **headers: str) -> None:
        self.send_bytes(status, json.dumps(body).encode(), **headers)

    def send_bytes(self, status: int, content: bytes, **headers: str) -> None:
        with suppress(ConnectionError):  # a client that had enough hangs up
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


# ---------------------------------------------------------------------- faults
def status(code: int, message: str = "out of luck", **headers: str) -> Fault:
    def fault(handler: _Handler, request: Request) -> bool:
        handler.send(code, {"error": {"message": message, "code": code}}, **headers)
        return True

    return fault


def says(content: object) -> Fault:
    """A message of this content; {nonce} and {candidate} stand for the request's."""

    def fault(handler: _Handler, request: Request) -> bool:
        filled = content
        if isinstance(content, str):
            filled = content.replace("{nonce}", request.nonce).replace("{candidate}", request.candidate)
        handler.say(filled)
        return True

    return fault


def body(content: bytes) -> Fault:
    def fault(handler: _Handler, request: Request) -> bool:
        handler.send_bytes(200, content)
        return True

    return fault


def drop(handler: _Handler, request: Request) -> bool:
    handler.close_connection = True
    handler.connection.close()
    return True


def slow(seconds: float) -> Fault:
    return lambda handler, request: handler.court.leaving.wait(seconds)


def trickle(handler: _Handler, request: Request) -> bool:
    """One byte every 0.05 s, for ever."""
    with suppress(ConnectionError):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        while not handler.court.leaving.wait(0.05):
            handler.wfile.write(b" ")
    return True


def flood(handler: _Handler, request: Request) -> bool:
    """More than anybody wants to read."""
    with suppress(ConnectionError):
        handler.send_response(200)
        handler.send_header("Content-Length", str(10**12))
        handler.end_headers()
        while not handler.court.leaving.is_set():
            handler.wfile.write(b" " * 65536)
    return True


# ---------------------------------------------------------------------- who asks it
def judge(court, **options) -> Judge:
    return Judge(**{"url": court.url, "model": "m", "cache": None, "timeout_seconds": 10.0, **options})


def rollout(text="<answer> 4 </answer>", *, answer="4", finish_reason="stop") -> Rollout:
    return Rollout(
        problem=Problem(prompt=[{"role": "user", "content": "What is 2 + 2?"}], answer=answer),
        prompt_ids=torch.tensor([1]),
        completion_ids=torch.zeros(3, dtype=torch.int64),
        text=text,
        finish_reason=finish_reason,
    )


def judged(reward, *rollouts) -> list[Judgement]:
    async def all_of_them():
        return await asyncio.gather(*map(reward.score, rollouts))

    return asyncio.run(all_of_them())
