"""A server that speaks vLLM's protocol around a transformers model on the CPU, and fails when it is told to.

It reads adapters and weights from the folders it is given, and shares no code with the engine that it tests.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

Fault = Callable[["_Handler"], bool]
"""Answers in the server's place, True; or only delays it, False."""


@dataclass(kw_only=True)
class TinyVLLM:
    """A running server; use as a context manager.

    `faults[path]` are used up one a request; `spoil` changes each choice before it is sent; after `dies_after`
    completions every connection is dropped.
    """

    folder: str
    name: str | None = None
    max_model_len: int = 2048
    processed: bool = False
    dev_mode: bool = True
    runtime_lora: bool = True
    api_key: str | None = None
    dies_after: int | None = None
    spoil: Callable[[dict[str, Any]], None] | None = None
    faults: dict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    seen: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.lock = threading.Lock()
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.base = AutoModelForCausalLM.from_pretrained(self.folder).eval()
        self.adapters: dict[str, Any] = {}
        self.paused = False
        self.completions = 0
        self.leaving = threading.Event()
        handler = type("Handler", (_Handler,), {"tiny": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = False  # so that closing waits for them: torch must not run while Python exits
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.leaving.set()
        self.http.shutdown()
        self.http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"

    @property
    def served(self) -> str:
        return self.name or self.folder

    def asked(self, path: str) -> list[dict[str, Any]]:
        return [body for where, body in self.seen if where == path]

    # ------------------------------------------------------------------ what it serves
    def models(self) -> list[dict[str, Any]]:
        base = {"id": self.served, "root": self.folder, "parent": None, "max_model_len": self.max_model_len}
        return [base, *({"id": name, "root": "x", "parent": self.served} for name in self.adapters)]

    def load_adapter(self, body: dict[str, Any]) -> None:
        base = AutoModelForCausalLM.from_pretrained(self.folder)
        self.adapters[body["lora_name"]] = PeftModel.from_pretrained(base, body["lora_path"]).eval()

    def reload(self, folder: str) -> None:
        assert self.paused, "weights must not change under a running request"
        self.base = AutoModelForCausalLM.from_pretrained(folder).eval()

    @torch.no_grad()
    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        model = self.base if body["model"] == self.served else self.adapters[body["model"]]
        noise = torch.Generator().manual_seed(body["seed"])
        ids, logprobs, tops, reason = list(body["prompt"]), [], [], "length"
        ends = {self.tokenizer.eos_token_id, *body.get("stop_token_ids", [])}
        for _ in range(body["max_tokens"]):
            raw = model(torch.tensor([ids])).logits[0, -1].float()
            kept = raw / (body["temperature"] or 1.0)
            if body["top_k"] > 0:
                kept[kept < kept.topk(body["top_k"]).values[-1]] = -torch.inf
            if body["temperature"] == 0:
                token = int(raw.argmax())
            else:
                token = int(torch.multinomial(kept.softmax(-1), 1, generator=noise))
            reported = (kept if self.processed else raw).log_softmax(-1)
            ids.append(token)
            logprobs.append(float(reported[token]))
            best = int(reported.argmax())
            tops.append({f"token_id:{i}": float(reported[i]) for i in {best, token}})
            text = self.tokenizer.decode(ids[len(body["prompt"]) :])
            if token in ends or any(stop in text for stop in body.get("stop", [])):
                reason = "stop"
                break
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": reason}
        choice["logprobs"] = {"token_logprobs": logprobs, "top_logprobs": tops}
        if body.get("return_token_ids"):
            choice["token_ids"] = ids[len(body["prompt"]) :]
        return choice


class _Handler(BaseHTTPRequestHandler):
    tiny: TinyVLLM

    def do_GET(self) -> None:
        self.handle_one("GET")

    def do_POST(self) -> None:
        self.handle_one("POST")

    def handle_one(self, method: str) -> None:
        tiny = self.tiny
        path = self.path.partition("?")[0]
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.loads(raw) if raw else {}
        tiny.seen.append((path, body))
        faults = tiny.faults[path]
        if faults and faults.popleft()(self):
            return None
        if tiny.dies_after is not None and tiny.completions >= tiny.dies_after:
            return drop(self)
        if tiny.api_key is not None and self.headers.get("Authorization") != f"Bearer {tiny.api_key}":
            return self.answer(401, {"error": "Unauthorized"})
        known = self.routes().get((method, path))
        return self.answer(404, {"detail": "Not Found"}) if known is None else known(body)

    def routes(self) -> dict[tuple[str, str], Callable[[dict[str, Any]], None]]:
        routes: dict[tuple[str, str], Callable[[dict[str, Any]], None]] = {
            ("GET", "/health"): lambda _: self.answer(200, None),
            ("GET", "/v1/models"): lambda _: self.answer(200, {"object": "list", "data": self.tiny.models()}),
            ("POST", "/v1/completions"): self.completions,
        }
        if self.tiny.runtime_lora:
            routes["POST", "/v1/load_lora_adapter"] = self.load_adapter
            routes["POST", "/v1/unload_lora_adapter"] = self.unload_adapter
        if self.tiny.dev_mode:
            routes["POST", "/pause"] = lambda _: self.pause(paused=True)
            routes["POST", "/resume"] = lambda _: self.pause(paused=False)
            routes["POST", "/collective_rpc"] = self.collective_rpc
            routes["POST", "/reset_prefix_cache"] = lambda _: self.answer(200, None)
        return routes

    def completions(self, body: dict[str, Any]) -> None:
        tiny = self.tiny
        if body["model"] != tiny.served and body["model"] not in tiny.adapters:
            return self.answer(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        with tiny.lock:
            choice = tiny.complete(body)
            tiny.completions += 1
        if tiny.spoil is not None:
            tiny.spoil(choice)
        return self.answer(200, {"id": "cmpl-1", "object": "text_completion", "choices": [choice]})

    def load_adapter(self, body: dict[str, Any]) -> None:
        if body["lora_name"] in self.tiny.adapters and not body.get("load_inplace"):
            return self.answer(400, {"error": {"message": "has already been loaded"}})
        self.tiny.load_adapter(body)
        return self.answer(200, "Success")

    def unload_adapter(self, body: dict[str, Any]) -> None:
        del self.tiny.adapters[body["lora_name"]]
        self.answer(200, "Success")

    def pause(self, *, paused: bool) -> None:
        self.tiny.paused = paused
        self.answer(200, {"status": "paused" if paused else "resumed"})

    def collective_rpc(self, body: dict[str, Any]) -> None:
        assert body["method"] == "reload_weights"
        self.tiny.reload(body["kwargs"]["weights_path"])
        self.answer(200, {"results": [None]})

    def answer(self, status: int, body: object) -> None:
        self.send_bytes(status, b"" if body is None else json.dumps(body).encode())

    def send_bytes(self, status: int, content: bytes) -> None:
        with suppress(ConnectionError):  # a client that had enough hangs up
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


# ---------------------------------------------------------------------- faults
def status(code: int, message: str = "out of luck") -> Fault:
    def fault(handler: _Handler) -> bool:
        handler.answer(code, {"error": {"message": message, "code": code}})
        return True

    return fault


def garbage(handler: _Handler) -> bool:
    handler.send_bytes(200, b"<html>welcome\nto this router</html>")
    return True


def drop(handler: _Handler) -> bool:
    handler.close_connection = True
    handler.connection.close()
    return True


def slow(seconds: float) -> Fault:
    def fault(handler: _Handler) -> bool:
        return handler.tiny.leaving.wait(seconds)

    return fault
