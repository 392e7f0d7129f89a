"""vLLM servers as a rollout engine, over HTTP alone.

Weights travel through a folder that trainer and servers see under the same path: adapters are loaded into the running
server, full weights are reloaded. Nothing but prompts, completions and paths goes over the wire.
"""

from __future__ import annotations

import math
import os
import queue
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from lit_reason.engines.vllm_server import Patience, Server
from lit_reason.loading import resolve
from lit_reason.policy import Policy
from lit_reason.rollout import Completion, Engine, Request, Sampling, find_end
from lit_reason.types import UserError

PROBE_TEMPERATURE = 4.0
"""Far enough from 1 that a server which applies temperature to log-probabilities gives itself away."""

Job = TypeVar("Job")
Result = TypeVar("Result")


class VLLM(Engine):
    """Completions from one or several vLLM servers, 0.16 or newer.

    Start them with, for adapters (`policy.lora`; vLLM knows no DoRA, and its --max-lora-rank is 16 unless told):

        VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank 32

    or, for full weights:

        VLLM_SERVER_DEV_MODE=1 vllm serve MODEL

    and, for a sampling temperature other than 1, with `--logprobs-mode processed_logprobs`. Both settings let whoever
    reaches the port change the server's weights: keep it inside a trusted network.

    Each completion is a request of its own with its own seed, so that it depends on the server's arithmetic but not on
    the order of requests; each rank has `sampling.concurrent` requests in flight, all servers together. With several
    servers, all started alike, a prompt's whole group goes to one, whose prefix cache then reads the prompt once.

    Log-probabilities are recorded at the sampling temperature, before top-p, top-k, min-p or a penalty. A server says
    either those before temperature and filters or those after both; which of the two is found out by asking it. Where
    neither is what is wanted (filters together with a temperature other than 1), none are recorded.

    Not met yet: a real vLLM. All of this is written after the documentation and sources of vLLM up to 0.32 and tested
    against a server that speaks the same protocol around a transformers model. Loading adapters and pausing are
    documented endpoints; full weights go through `reload_weights` with a path, a method of vLLM's workers that its
    development endpoint `/collective_rpc` passes on to, and that vLLM is known to get wrong for hybrid Mamba models.
    NCCL and IPC weight transfer are not implemented.

    Args:
        url: where a server listens, such as http://localhost:8000, or a list of such.
        model: name the servers serve the policy's base model under; null expects `policy.model` itself.
        folder: where weights are exchanged, a path that the trainer and all servers see; the newest stay there. Null is
            a temporary folder, right for servers on the same machine.
        timeout_seconds: for the answer to one request: a completion, or loading weights.
        retries: further attempts after a lost connection, an overloaded (429) or a failing server (5xx).
        backoff_seconds: before the first of them; doubled each time, with some noise.
        api_key_variable: name of the environment variable that holds the servers' --api-key; null sends none.
    """

    def __init__(
        self,
        *,
        url: str | list[str],
        model: str | None = None,
        folder: str | None = None,
        timeout_seconds: float = 600.0,
        retries: int = 4,
        backoff_seconds: float = 1.0,
        api_key_variable: str | None = None,
    ) -> None:
        self.urls = [u.rstrip("/").removesuffix("/v1") for u in ([url] if isinstance(url, str) else url)]
        if not self.urls or not all(u.startswith(("http://", "https://")) for u in self.urls):
            raise UserError(
                f"engine.url must be an address such as http://localhost:8000, or a list of such; got {url!r}"
            )
        for name, value, least in (("timeout_seconds", timeout_seconds, 1e-3), ("retries", retries, 0)):
            if value < least:
                raise UserError(f"engine.{name} must be {least:g} or more, got {value}")
        if backoff_seconds < 0:
            raise UserError(f"engine.backoff_seconds must be 0 or more, got {backoff_seconds}")
        if api_key_variable is not None and api_key_variable not in os.environ:
            raise UserError(f"engine.api_key_variable: the environment variable '{api_key_variable}' is not set")
        try:
            import httpx  # noqa: F401 - found out now, not after the model was loaded
            import tenacity  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"engine VLLM needs the package '{error.name}': pip install 'lit-reason[vllm]', or use another engine"
            ) from error
        self.model = model
        self.folder = folder
        self.patience = Patience(timeout_seconds=timeout_seconds, retries=retries, backoff_seconds=backoff_seconds)
        self.api_key_variable = api_key_variable
        self.adapter: str | None = None  # name of the policy's adapter on the servers
        self._published: Path | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._after_temperature: bool | None = None  # what the servers' log-probabilities are, once known

    # ------------------------------------------------------------------ completions
    def generate(
        self, policy: Policy, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[tuple[int, int, Completion]]:
        longest = max(len(r.prompt_ids) for r in requests) + sampling.max_new_tokens
        with self._servers() as servers:
            bases = [self._check(server, policy, longest) for server in servers]
            model = self.adapter or bases[0]
            recorded = self._recorded(servers[0], model, requests[0], sampling)
            options = _options(policy, sampling)

            def complete(job: tuple[int, int]) -> tuple[int, int, dict[str, Any]]:
                number, sample = job
                home = number % len(servers)
                body = options | {
                    "model": self.adapter or bases[home],
                    "prompt": requests[number].prompt_ids.tolist(),
                    "seed": requests[number].streams[sample],
                }
                return number, sample, servers[home].complete(body)

            jobs = [(number, sample) for number, r in enumerate(requests) for sample in range(len(r.streams))]
            for number, sample, choice in _side_by_side(complete, jobs, sampling.concurrent):
                url = servers[number % len(servers)].url
                # here, and not in the threads: a tokenizer is no thing to share
                yield number, sample, _read(choice, url, policy, sampling, recorded=recorded)

    def _recorded(self, server: Server, model: str, request: Request, sampling: Sampling) -> bool:
        """Whether the server's log-probabilities are those wanted; an error where they could be and are not."""
        filtered = (sampling.top_p, sampling.top_k, sampling.min_p, sampling.repetition_penalty) != (1.0, 0, 0.0, 1.0)
        tempered = sampling.trained_temperature != 1.0
        if not filtered and not tempered:
            return True
        if filtered and tempered:
            return False
        if self._after_temperature is None:
            self._after_temperature = _applies_temperature(server, model, request)
        if tempered and not self._after_temperature:
            raise UserError(
                f"engine.url: {server.url} gives log-probabilities before temperature, and sampling.temperature is "
                f"{sampling.temperature:g}: start it with --logprobs-mode processed_logprobs, or set that to 1"
            )
        return tempered or not self._after_temperature

    # ------------------------------------------------------------------ weights
    def weights_changed(self, policy: Policy) -> None:
        """Bring the policy's present weights to all servers; on several ranks, the first one does."""
        many = dist.is_available() and dist.is_initialized()
        outcome: list[str | None] = [None, None]
        if not many or dist.get_rank() == 0:
            try:
                outcome = [self._publish(policy), None]
            except UserError as error:  # the other ranks wait, and must hear of it
                outcome = [None, str(error)]
        if many:
            dist.broadcast_object_list(outcome, src=0)
        self.adapter, failure = outcome
        if failure is not None:
            raise UserError(failure)

    def _publish(self, policy: Policy) -> str | None:
        """Save the weights, have every server load them, and let go of those before; the adapter's name, if any."""
        lora = policy.options.lora
        if lora is not None and lora.dora:
            raise UserError("policy.lora.dora: vLLM cannot serve DoRA adapters: set it to false, or use another engine")
        name = f"lit-reason-{uuid.uuid4().hex[:12]}"
        folder = self._exchange() / name
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise UserError(
                f"engine.folder: cannot write to {folder.parent} ({error.strerror}): name another"
            ) from error
        policy.save_pretrained(folder)

        def load(server: Server) -> None:
            self._check(server, policy, 0)
            if lora is None:
                server.reload(folder)
            else:
                server.load_adapter(name, folder, self.adapter)

        with self._servers() as servers:
            for _ in _side_by_side(load, servers, len(servers)):
                pass
        if self._published is not None:
            shutil.rmtree(self._published)
        self._published = folder
        return None if lora is None else name

    def _exchange(self) -> Path:
        if self.folder is not None:
            return Path(self.folder).expanduser().absolute()
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="lit-reason-weights-")
        return Path(self._temporary.name)

    # ------------------------------------------------------------------ servers
    def _check(self, server: Server, policy: Policy, tokens: int) -> str:
        return server.check(self.model or policy.options.model, resolve(policy.options.model), tokens)

    @contextmanager
    def _servers(self) -> Iterator[list[Server]]:
        import httpx

        headers = {}
        if self.api_key_variable is not None:
            headers["Authorization"] = f"Bearer {os.environ[self.api_key_variable]}"
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        with httpx.Client(headers=headers, limits=limits) as http:
            yield [Server(url, http, self.patience) for url in self.urls]


def _options(policy: Policy, sampling: Sampling) -> dict[str, Any]:
    """What all completions of a phase ask for; everything is said, or the checkpoint's own defaults would apply."""
    return {
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": list(sampling.stop),
        "include_stop_str_in_output": True,
        "stop_token_ids": policy.eos_ids,
        "skip_special_tokens": False,
        "logprobs": 1,
        "return_token_ids": True,
    }


def _read(choice: dict[str, Any], url: str, policy: Policy, sampling: Sampling, *, recorded: bool) -> Completion:
    """A server's choice as a completion.

    Raises:
        UserError: tokens or log-probabilities are missing, or their numbers differ.
    """
    ids, reason = choice.get("token_ids"), choice.get("finish_reason")
    if reason not in {"stop", "length"}:
        raise UserError(f"engine.url: {url} broke a completion off ({reason}): look at the server's log")
    if not isinstance(ids, list) or not 1 <= len(ids) <= sampling.max_new_tokens:
        got = f"{len(ids)} token_ids" if isinstance(ids, list) else "no token_ids"
        raise UserError(
            f"engine.url: {url} answered with {got}, expected 1 to {sampling.max_new_tokens} as asked for by "
            "return_token_ids: use vLLM 0.16 or newer"
        )
    said = (choice.get("logprobs") or {}).get("token_logprobs")
    if not isinstance(said, list) or len(said) != len(ids) or not all(isinstance(x, int | float) for x in said):
        got = f"{len(said)} log-probabilities" if isinstance(said, list) else "no log-probabilities"
        raise UserError(
            f"engine.url: {url} answered with {got} for {len(ids)} tokens, expected one number for each: start the "
            "server without --max-logprobs 0"
        )
    if not all(map(math.isfinite, said)):
        raise UserError(
            f"engine.url: {url} answered with log-probabilities that are not finite: the policy's weights have "
            "diverged. Go on from an earlier checkpoint with a lower learning rate"
        )
    tokens = torch.tensor(ids, dtype=torch.int64)
    # as other engines cut; a server may also stop at an end of its own
    length, ended = find_end(policy, tokens, sampling) or (len(ids), reason)
    logprobs = torch.tensor(said[:length], dtype=torch.float32) if recorded else None
    return Completion(ids=tokens[:length], logprobs=logprobs, finish_reason=ended)


def _applies_temperature(server: Server, model: str, request: Request) -> bool:
    """Whether a server's log-probabilities are those after temperature: the best token's then fall as it rises."""
    best = []
    for temperature in (1.0, PROBE_TEMPERATURE):
        choice = server.complete(
            {
                "model": model,
                "prompt": request.prompt_ids.tolist(),
                "max_tokens": 1,
                "temperature": temperature,
                "top_p": 1.0,
                "top_k": 0,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "seed": 0,
                "logprobs": 1,
            }
        )
        tops = (choice.get("logprobs") or {}).get("top_logprobs")
        if not tops or not tops[0]:
            raise UserError(
                f"engine.url: {server.url} answered without log-probabilities, expected those of one token: start the "
                "server without --max-logprobs 0"
            )
        best.append(float(max(tops[0].values())))
    return abs(best[0] - best[1]) > 1e-3


def _side_by_side(work: Callable[[Job], Result], jobs: Sequence[Job], threads: int) -> Iterator[Result]:
    """Results in the order they come; the first error, or leaving, lets nothing more begin.

    The threads are daemons: an abandoned request keeps neither the error nor the end of the program waiting.
    """
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    stopped = threading.Event()
    for job in jobs:
        waiting.put(job)

    def run() -> None:
        while not stopped.is_set():
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((True, work(job)))
            except BaseException as error:  # noqa: BLE001 - raised again where the results are taken
                done.put((False, error))

    for _ in range(min(threads, len(jobs))):
        threading.Thread(target=run, daemon=True).start()
    try:
        for _ in jobs:
            fine, result = done.get()
            if not fine:
                raise result
            yield result
    finally:
        stopped.set()
