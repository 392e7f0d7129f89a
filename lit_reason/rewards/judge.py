"""`judge`: how well does an answer agree with the reference, in the eyes of another language model?

rewards:
  - judge: {url: "http://localhost:8000/v1", model: my-judge}
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from lit_reason.answer import extract_answer
from lit_reason.reward import Judgement, Reward
from lit_reason.rewards.judge_cache import VerdictCache
from lit_reason.rewards.judge_prompt import (
    RESPONSE_FORMATS,
    RUBRIC,
    ask,
    check_rubric,
    neutralised,
    question_of,
    read_verdict,
    says_something,
)
from lit_reason.rewards.judge_server import Burst, Endpoint, Limits, PassingError, RefusedError, waiting
from lit_reason.types import Problem, Rollout, UserError

PARAMETERS = {"temperature": 0.0, "max_tokens": 512}
_OURS = ("model", "messages", "response_format", "n", "stream")


class Judge(Reward):
    """A score in [0, 1] from a language model behind an OpenAI-compatible endpoint, which compares with the reference.

    The judge sees the question, the reference answer and the candidate, and must reply with one JSON object
    {"reason": text, "score": number, "nonce": text} and nothing else. A missing or unknown key, NaN, a number outside
    [0, 1] or a nonce other than this request's make it garbage, which is asked for again.

    A candidate cannot write its own verdict: JSON verdicts and phrases such as "score: 1" are taken out, special
    tokens and role markers broken, and the rest stands between random delimiters; since the nonce is drawn after
    the candidate was written, an echo of it never counts. A judge that a candidate talks into a good grade cannot be
    told from one that means it: look at what scores high.

    A row is left out when it cannot be judged, and counted: `no_reference`, `garbage`, `unavailable` (no attempt came
    through) or `refused` (the server takes other texts, not this one). Without asking, 0 goes to completions that were
    cut off (`truncated`), say nothing that can be judged (`no_answer`) or too much (`too_long`). A wrong address, model
    or key stops the run.

    Needs `pip install 'lit-reason[judge]'`. Source: language models as judges, arXiv 2306.05685, against a reference
    answer as there in section 3.4; that they can be hacked by what they read: arXiv 2507.08794.

    Args:
        url: address of the endpoint, such as http://localhost:8000/v1.
        model: name the endpoint serves the judge under.
        api_key_env: name of the environment variable that holds the key; null sends none. The key itself belongs in no
            option: those are written into configurations and checkpoints.
        judges: `answer` shows the judge what `extract_answer` finds, `completion` the whole text.
        rubric: what makes an answer good, as text or as a file; {question}, {reference} and {candidate} stand for their
            texts. Without {reference}, problems need no gold answer. Null is a rubric for final answers.
        response_format: what the server is asked to hold the judge to; `none` for servers that know neither.
        parameters: further fields of the request; null is temperature 0 and max_tokens 512, room for a short reason.
        concurrency: judgements under way at a time, in each process.
        timeout_seconds: for one attempt, from connecting to the last byte.
        retries: further attempts for one judgement, on 408, 409, 425, 429, 5xx, timeouts, lost connections and garbage,
            with exponentially growing, noisy waits, and no earlier than the server's Retry-After.
        patience_seconds: after which no further attempt of a judgement starts.
        max_characters: longest candidate that is sent, so that no request exceeds the judge's context.
        cache: folder for verdicts, by a digest of endpoint, model, parameters and all texts; several processes and runs
            may share it. Null keeps none. Empty it when another model is served under the same name.

    Raises:
        UserError: an option is wrong, or the variable is not set.
    """

    def __init__(
        self,
        *,
        url: str,
        model: str,
        api_key_env: str | None = None,
        judges: Literal["answer", "completion"] = "answer",
        rubric: str | None = None,
        response_format: Literal["json_schema", "json_object", "none"] = "json_object",
        parameters: dict[str, Any] | None = None,
        concurrency: int = 16,
        timeout_seconds: float = 60.0,
        retries: int = 4,
        patience_seconds: float = 180.0,
        max_characters: int = 16_000,
        cache: str | None = "~/.cache/lit-reason/judge",
    ) -> None:
        least: dict[str, tuple[float, float]] = {
            "concurrency": (concurrency, 1),
            "timeout_seconds": (timeout_seconds, 1e-3),
            "retries": (retries, 0),
            "patience_seconds": (patience_seconds, 0),
            "max_characters": (max_characters, 1),
        }
        for name, (value, bound) in least.items():
            if not bound <= value < float("inf"):
                raise UserError(f"reward 'judge': {name} must be {bound:g} or more, got {value}")
        self.parameters = PARAMETERS if parameters is None else parameters
        if taken := [name for name in _OURS if name in self.parameters]:
            raise UserError(f"reward 'judge': parameters must not hold '{taken[0]}', which the reward sets itself")
        try:
            import httpx  # noqa: F401 - found out now, not after the first rollout
            import tenacity  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"reward 'judge' needs the package '{error.name}': pip install 'lit-reason[judge]'"
            ) from error
        self.rubric = RUBRIC if rubric is None else _read(rubric)
        check_rubric(self.rubric)
        self.model, self.judges, self.max_characters = model, judges, max_characters
        self.response_format = RESPONSE_FORMATS[response_format]
        limits = Limits(
            concurrency=concurrency,
            timeout_seconds=timeout_seconds,
            retries=retries,
            patience_seconds=patience_seconds,
        )
        self.endpoint = Endpoint(url, api_key_env, limits)
        self.cache = None if cache is None else VerdictCache(cache)

    def setup(self, problem: Problem | None) -> None:
        from tenacity import Retrying

        try:
            Retrying(**self._patience())(self.endpoint.reach)
        except PassingError as error:
            raise self._unreachable(error) from error

    async def score(self, rollout: Rollout) -> Judgement:
        problem = rollout.problem
        if problem.answer is None and "{reference}" in self.rubric:
            return Judgement(value=None, status="no_reference")
        if rollout.finish_reason == "length":
            return Judgement(value=0.0, status="truncated")
        text = (extract_answer(rollout.text) or "") if self.judges == "answer" else rollout.text
        if len(text) > self.max_characters:
            return Judgement(value=0.0, status="too_long")
        candidate = neutralised(text)
        if not says_something(candidate):
            return Judgement(value=0.0, status="no_answer")
        texts = {"question": question_of(problem), "reference": problem.answer or "", "candidate": candidate}
        digest = self._digest(texts)
        async with self.endpoint.burst() as burst, burst.turns[digest]:  # equal candidates are judged once, and alike
            if digest not in burst.known:
                burst.known[digest] = await self._judgement(burst, texts, digest)
            found: Judgement = burst.known[digest]
            return found

    async def _judgement(self, burst: Burst, texts: dict[str, str], digest: str) -> Judgement:
        if self.cache is not None and (score := self.cache.get(digest)) is not None:
            return Judgement(value=score)
        async with burst.room:
            try:
                score = await self._verdict(burst, texts)
            except PassingError as error:
                if error.status == "unreachable":
                    raise self._unreachable(error) from error
                return Judgement(value=None, status=error.status)
            except RefusedError:
                return Judgement(value=None, status="refused")
        if self.cache is not None:
            self.cache.put(digest, score)
        return Judgement(value=score)

    async def _verdict(self, burst: Burst, texts: dict[str, str]) -> float:
        """Ask until there is a verdict, within the limits."""
        from tenacity import AsyncRetrying

        return await AsyncRetrying(**self._patience())(self._attempt, burst, texts)

    def _patience(self) -> dict[str, Any]:
        """How tenacity is to retry."""
        from tenacity import retry_if_exception_type, stop_after_attempt, stop_before_delay

        limits = self.endpoint.limits
        return {
            "retry": retry_if_exception_type(PassingError),
            "stop": stop_after_attempt(limits.retries + 1) | stop_before_delay(limits.patience_seconds),
            "wait": waiting,
            "reraise": True,
        }

    def _unreachable(self, error: PassingError) -> UserError:
        why = f"({error.__cause__}): start it, or correct url"
        return UserError(f"reward 'judge': there is no server at {self.endpoint.url} {why}")

    async def _attempt(self, burst: Burst, texts: dict[str, str]) -> float:
        asked = ask(self.rubric, **texts)
        body = {"model": self.model, "messages": asked.messages, **self.parameters}
        if self.response_format:
            body["response_format"] = self.response_format
        score = read_verdict(await self.endpoint.complete(burst.http, body), asked.nonce)
        if score is None:
            raise PassingError("garbage")
        return score

    def _digest(self, texts: dict[str, str]) -> str:
        """A name for what is judged and by whom; delimiters and nonce, which change, are no part of it."""
        parts = [self.endpoint.url, self.model, self.response_format, self.parameters, self.rubric, texts]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()


def _read(rubric: str) -> str:
    """A rubric that is given as a file, read; any other as it is."""
    one_line = "\n" not in rubric and "{" not in rubric
    if not one_line:
        return rubric
    try:
        return Path(rubric).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(
            f"reward 'judge': rubric must be a text with {{candidate}} or a file, got '{rubric}'"
        ) from error
