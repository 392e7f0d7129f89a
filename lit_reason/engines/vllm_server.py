"""One vLLM server, spoken to over HTTP: bounded retries, and errors of one line that say what to mend."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_reason.types import UserError

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS = 10.0
"""How long one attempt to connect may take."""

LONGEST_WAIT_SECONDS = 30.0
"""Most seconds between two attempts."""

DEV_MODE = "start the server with VLLM_SERVER_DEV_MODE=1"
RUNTIME_LORA = "start the server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"


@dataclass(kw_only=True, frozen=True)
class Patience:
    """How long to wait for a server.

    Attributes:
        timeout_seconds: for the answer to one request.
        retries: further attempts after a lost connection, an overloaded (429) or a failing server (5xx).
        backoff_seconds: before the first of them; doubled each time, with some noise.
    """

    timeout_seconds: float
    retries: int
    backoff_seconds: float


class _FailedOnceError(Exception):
    """An attempt failed in a way that the next one may not."""


class Server:
    """A vLLM server.

    Args:
        url: where it listens, without a slash at the end.
        http: client with the headers to send; shared between threads.
        patience: how long to wait for it.
    """

    def __init__(self, url: str, http: httpx.Client, patience: Patience) -> None:
        self.url, self.http, self.patience = url, http, patience

    # ------------------------------------------------------------------ what it does
    def check(self, model: str, root: str, tokens: int) -> str:
        """Make sure that the server is well and serves the policy's model.

        Args:
            model: name it should be served under, or that the server should have loaded it from.
            root: the same as a folder, where there is one.
            tokens: longest sequence that will be asked for.

        Returns:
            The name to ask for.

        Raises:
            UserError: there is no healthy server, it serves something else, or its context is too short.
        """
        self.send("GET", "/health")
        listed = self.json(self.send("GET", "/v1/models"))
        entries = listed.get("data") if isinstance(listed, dict) else None
        if not isinstance(entries, list) or not all(isinstance(e, dict) and "id" in e for e in entries):
            raise UserError(
                f"engine.url: {self.url}/v1/models lists no models: it is no vLLM server. Correct the address"
            )
        bases = [e for e in entries if not e.get("parent")]  # adapters name their base as parent
        for entry in bases:
            loaded_from = str(entry.get("root") or "")
            if model in {entry["id"], loaded_from} or (loaded_from and Path(loaded_from) == Path(root)):
                limit = entry.get("max_model_len")
                if isinstance(limit, int) and limit < tokens:
                    raise UserError(
                        f"engine.url: {self.url} reads {limit} tokens at most, and prompts with "
                        f"sampling.max_new_tokens take up to {tokens}: lower that, or raise its --max-model-len"
                    )
                return str(entry["id"])
        served = ", ".join(f"'{e['id']}'" for e in bases) or "nothing"
        raise UserError(
            f"engine.url: {self.url} serves {served}, and the policy is '{model}': start it with `vllm serve {root}`, "
            "or set engine.model to the served name if it is the same model"
        )

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The one choice of `/v1/completions`."""
        answer = self.json(self.send("POST", "/v1/completions", body))
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise UserError(f"engine.url: {self.url}/v1/completions answered without a choice: it is no vLLM server")
        choice: dict[str, Any] = choices[0]
        return choice

    def load_adapter(self, name: str, folder: Path, replaces: str | None) -> None:
        """Serve a PEFT adapter under a new name, then let go of the one before.

        The name changes with the weights because the server's prefix cache is keyed by it.
        """
        # in place: a second attempt after a lost answer must not fail because the first had come through
        body = {"lora_name": name, "lora_path": str(folder), "load_inplace": True}
        self.send("POST", "/v1/load_lora_adapter", body, mend=RUNTIME_LORA)
        if replaces is not None:
            self.send("POST", "/v1/unload_lora_adapter", {"lora_name": replaces}, mend=RUNTIME_LORA)

    def reload(self, folder: Path) -> None:
        """Read all weights anew from a folder that `save_pretrained` has written, with nothing generating meanwhile.

        A server that fails at it stays paused: weights that were read by half must not answer.
        """
        self.send("POST", "/pause?mode=wait", mend=DEV_MODE)
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        self.send("POST", "/collective_rpc", body, mend=DEV_MODE)
        self.send("POST", "/reset_prefix_cache", mend=DEV_MODE)
        self.send("POST", "/resume", mend=DEV_MODE)

    # ------------------------------------------------------------------ how it is asked
    def send(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, mend: str = "correct the address"
    ) -> httpx.Response:
        """A request, again and again within patience.

        Args:
            method: GET or POST.
            path: beginning with a slash.
            body: sent as JSON.
            mend: what to do when the server knows no such path.
        """
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential, wait_random

        patience = self.patience
        retrying = Retrying(
            retry=retry_if_exception_type(_FailedOnceError),
            stop=stop_after_attempt(patience.retries + 1),
            wait=wait_exponential(multiplier=patience.backoff_seconds, max=LONGEST_WAIT_SECONDS)
            + wait_random(0, patience.backoff_seconds),
            reraise=True,
        )
        try:
            return retrying(self._attempt, method, path, body, mend)
        except _FailedOnceError as error:
            times = f"{patience.retries + 1} times" if patience.retries else "once"
            raise UserError(f"engine.url: {self.url}{path.partition('?')[0]} was tried {times}: {error}") from error

    def _attempt(self, method: str, path: str, body: dict[str, Any] | None, mend: str) -> httpx.Response:
        import httpx

        where = self.url + path.partition("?")[0]
        timeout = httpx.Timeout(self.patience.timeout_seconds, connect=CONNECT_SECONDS)
        try:
            response = self.http.request(method, self.url + path, json=body, timeout=timeout)
        except httpx.ReadTimeout as error:  # the work was done in vain; doing it again would only add to the load
            raise UserError(
                f"engine.url: {where} did not answer within {self.patience.timeout_seconds:g} s: raise "
                "engine.timeout_seconds, or lower sampling.concurrent"
            ) from error
        except httpx.TransportError as error:
            raise _FailedOnceError(
                f"no answer ({_one_line(str(error) or type(error).__name__)}). Start a server with `vllm serve MODEL`, "
                "or correct the address"
            ) from error
        code = response.status_code
        if code == httpx.codes.TOO_MANY_REQUESTS:
            raise _FailedOnceError("the server is overloaded (429). Lower sampling.concurrent")
        if code >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise _FailedOnceError(f"the server fails ({code}: {_said(response)}). Its log says more")
        if code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise UserError(f"engine.api_key_variable: {where} refuses the key ({code}): name a variable that holds it")
        if code in (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED):
            raise UserError(f"engine.url: {where} does not exist ({_said(response)}): {mend}")
        if not response.is_success:
            raise UserError(f"engine.url: {where} refused ({code}): {_said(response)}")
        return response

    def json(self, response: httpx.Response) -> Any:  # noqa: ANN401 - whatever the server says
        """The body of an answer that should be JSON."""
        try:
            return response.json()
        except ValueError as error:
            raise UserError(
                f"engine.url: {response.url} answered with something that is no JSON ({_one_line(response.text)}): "
                "it is no vLLM server. Correct the address"
            ) from error


def _said(response: httpx.Response) -> str:
    """What an error answer says, in vLLM's, OpenAI's or FastAPI's form, or as text."""
    try:
        body = response.json()
    except ValueError:
        return _one_line(response.text)
    if isinstance(body, dict):
        body = body.get("error", body)
    if isinstance(body, dict):
        body = body.get("message", body.get("detail", body))
    return _one_line(str(body))


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return f"{line[:200]}..." if len(line) > 200 else line or "it says nothing"
