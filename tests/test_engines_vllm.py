"""The vLLM client, against a server that speaks the protocol around a tiny model, and against one that misbehaves."""

import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from jsonargparse import ArgumentParser
from vllm_server import TinyVLLM, drop, garbage, slow, status

from lit_reason.engines.in_process import InProcess
from lit_reason.engines.vllm import VLLM
from lit_reason.policy import LoRA, Policy, PolicyOptions
from lit_reason.rollout import Completion, Engine, Request, Sampling, roll_out
from lit_reason.types import Problem, UserError
from lit_reason.update import collate

TEXTS = ("1 + 1", "a longer question about 22 + 33", "x")
GREEDY = Sampling(temperature=0.0, max_new_tokens=12)


@pytest.fixture
def policy(tiny_llama: str) -> Policy:
    return Policy(PolicyOptions(model=tiny_llama))


@pytest.fixture
def server(tiny_llama: str) -> Iterator[TinyVLLM]:
    with TinyVLLM(folder=tiny_llama) as running:
        yield running


def engine(server: TinyVLLM, **options: Any) -> VLLM:
    return VLLM(url=server.url, **{"backoff_seconds": 0.01, "timeout_seconds": 20.0, **options})


def problems() -> list[Problem]:
    return [Problem(prompt=[{"role": "user", "content": text}], id=text) for text in TEXTS]


def completions(
    policy: Policy, engine: Engine, sampling: Sampling, count: int = 1
) -> dict[tuple[int, int], Completion]:
    requests = [
        Request(prompt_ids=policy.render(p.prompt), streams=tuple(range(100 * i, 100 * i + count)))
        for i, p in enumerate(problems())
    ]
    return {(r, s): completion for r, s, completion in engine.generate(policy.eval(), requests, sampling)}


def assert_same(found: dict[tuple[int, int], Completion], expected: dict[tuple[int, int], Completion]) -> None:
    assert found.keys() == expected.keys()
    for key, completion in expected.items():
        assert found[key].ids.tolist() == completion.ids.tolist()
        assert found[key].finish_reason == completion.finish_reason
        torch.testing.assert_close(found[key].logprobs, completion.logprobs, atol=1e-4, rtol=0)


def one_line(engine: VLLM, policy: Policy, sampling: Sampling = GREEDY) -> str:
    """The error that generating ends with."""
    with pytest.raises(UserError) as caught:
        completions(policy, engine, sampling)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def learn(policy: Policy) -> None:
    """Move every weight that can be trained, so that greedy completions change."""
    noise = torch.Generator().manual_seed(1)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=noise))


# ---------------------------------------------------------------------- completions
def test_greedy_completions_and_log_probabilities_are_those_of_the_default_engine(
    server: TinyVLLM, policy: Policy
) -> None:
    assert_same(completions(policy, engine(server), GREEDY), completions(policy, InProcess(), GREEDY))


def test_each_completion_has_a_seed_of_its_own(server: TinyVLLM, policy: Policy) -> None:
    sampling = Sampling(max_new_tokens=6)
    found = completions(policy, engine(server), sampling, 3)
    assert sorted(b["seed"] for b in server.asked("/v1/completions")) == [0, 1, 2, 100, 101, 102, 200, 201, 202]
    again = completions(policy, engine(server), Sampling(max_new_tokens=6, concurrent=1), 3)
    assert {k: c.ids.tolist() for k, c in found.items()} == {k: c.ids.tolist() for k, c in again.items()}
    assert len({tuple(c.ids.tolist()) for c in found.values()}) > 3


def test_a_stop_string_ends_a_completion(server: TinyVLLM, policy: Policy) -> None:
    whole = completions(policy, InProcess(), GREEDY)
    stop = policy.tokenizer.decode(whole[1, 0].ids[3:5])
    stopping = Sampling(temperature=0.0, max_new_tokens=12, stop=(stop,))
    assert_same(completions(policy, engine(server), stopping), completions(policy, InProcess(), stopping))


def test_several_servers_share_the_prompts_group_by_group(server: TinyVLLM, policy: Policy) -> None:
    with TinyVLLM(folder=server.folder) as second:
        both = VLLM(url=[server.url + "/v1/", second.url])
        found = completions(policy, both, Sampling(temperature=0.0, max_new_tokens=4), 2)
        assert len(found) == 6
        assert [len(s.asked("/v1/completions")) for s in (server, second)] == [4, 2]


def test_rollouts_carry_log_probabilities_at_the_sampling_temperature(server: TinyVLLM, policy: Policy) -> None:
    server.processed = True
    sampling = Sampling(temperature=0.7, max_new_tokens=6)
    rollouts = roll_out(policy, problems(), sampling, 2, engine=engine(server))
    logprobs, _ = policy.logprobs(collate(rollouts), 0.7)
    for rollout, row in zip(rollouts, logprobs.detach(), strict=True):
        torch.testing.assert_close(rollout.sampler_logprobs, row[: rollout.length], atol=1e-4, rtol=0)


def test_log_probabilities_before_temperature_are_refused_where_they_differ(server: TinyVLLM, policy: Policy) -> None:
    assert "processed_logprobs" in one_line(engine(server), policy, Sampling(temperature=0.7, max_new_tokens=4))
    completions(policy, engine(server), Sampling(max_new_tokens=4))  # at 1 they are the same


@pytest.mark.parametrize(
    ("processed", "temperature", "recorded"),
    [(False, 1.0, True), (True, 1.0, False), (True, 0.7, False), (False, 0.7, False)],
)
def test_filtered_sampling_records_what_was_said_before_the_filter_or_nothing(
    server: TinyVLLM, policy: Policy, processed: bool, temperature: float, recorded: bool
) -> None:
    server.processed = processed
    sampling = Sampling(temperature=temperature, top_k=3, max_new_tokens=4)
    found = completions(policy, engine(server), sampling)
    assert all((c.logprobs is not None) == recorded for c in found.values())


# ---------------------------------------------------------------------- weights
@pytest.mark.parametrize("lora", [None, LoRA(rank=2, alpha=2)], ids=["full", "adapter"])
def test_servers_sample_from_the_weights_of_the_last_update(
    server: TinyVLLM, tiny_llama: str, tmp_path: Path, lora: LoRA | None
) -> None:
    torch.manual_seed(0)  # adapters start at random
    policy = Policy(PolicyOptions(model=tiny_llama, lora=lora))
    before = completions(policy, InProcess(), GREEDY)
    remote = engine(server, folder=str(tmp_path / "weights"))
    for _ in range(2):
        learn(policy)
        remote.weights_changed(policy)
        expected = completions(policy, InProcess(), GREEDY)
        assert expected[0, 0].ids.tolist() != before[0, 0].ids.tolist()
        assert_same(completions(policy, remote, GREEDY), expected)
        assert len(list((tmp_path / "weights").iterdir())) == 1  # older versions are gone
        assert len(server.adapters) == (0 if lora is None else 1)
        before = expected
    assert not server.paused


def test_the_first_of_several_ranks_brings_the_weights(server: TinyVLLM, policy: Policy, tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        learn(policy)
        remote = engine(server)
        remote.weights_changed(policy)
        assert_same(completions(policy, remote, GREEDY), completions(policy, InProcess(), GREEDY))
        server.dev_mode = False
        with pytest.raises(UserError, match="VLLM_SERVER_DEV_MODE"):
            remote.weights_changed(policy)
    finally:
        dist.destroy_process_group()


def test_a_temporary_folder_serves_where_none_is_named(server: TinyVLLM, policy: Policy) -> None:
    learn(policy)
    remote = engine(server)
    remote.weights_changed(policy)
    assert_same(completions(policy, remote, GREEDY), completions(policy, InProcess(), GREEDY))


@pytest.mark.parametrize(
    ("lora", "setting", "hint"),
    [(None, "dev_mode", "VLLM_SERVER_DEV_MODE=1"), (LoRA(rank=2), "runtime_lora", "VLLM_ALLOW_RUNTIME_LORA_UPDATING")],
)
def test_a_server_that_cannot_take_weights_is_told_apart(
    server: TinyVLLM, tiny_llama: str, lora: LoRA | None, setting: str, hint: str
) -> None:
    setattr(server, setting, False)
    with pytest.raises(UserError, match=hint):
        engine(server).weights_changed(Policy(PolicyOptions(model=tiny_llama, lora=lora)))


def test_dora_adapters_are_refused(server: TinyVLLM, tiny_llama: str) -> None:
    policy = Policy(PolicyOptions(model=tiny_llama, lora=LoRA(rank=2, dora=True)))
    with pytest.raises(UserError, match=r"policy\.lora\.dora: vLLM cannot"):
        engine(server).weights_changed(policy)


def test_a_folder_that_cannot_be_written_is_named(server: TinyVLLM, policy: Policy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"engine\.folder: cannot write to"):
        engine(server, folder=str(tmp_path / "file")).weights_changed(policy)


# ---------------------------------------------------------------------- servers that fail
def test_passing_failures_are_tried_again(server: TinyVLLM, policy: Policy) -> None:
    server.faults["/health"] = deque([status(503), drop])
    server.faults["/v1/completions"] = deque([status(500), status(429), drop, status(503)])
    assert_same(completions(policy, engine(server), GREEDY), completions(policy, InProcess(), GREEDY))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (status(500, "CUDA\nout of memory"), "tried 3 times: the server fails (500: CUDA out of memory)"),
        (status(429), "overloaded (429). Lower sampling.concurrent"),
        (drop, "tried 3 times: no answer"),
        (garbage, "no JSON (<html>welcome to this router</html>)"),
        (status(400, "top_k must be small"), "refused (400): top_k must be small"),
    ],
    ids=["500", "429", "drop", "garbage", "400"],
)
def test_lasting_failures_are_errors_of_one_line(
    server: TinyVLLM, policy: Policy, fault: Callable[[Any], bool], said: str
) -> None:
    server.faults["/v1/completions"] = deque([fault] * 30)
    message = one_line(engine(server, retries=2), policy)
    assert server.url in message
    assert said in message


def test_a_missing_server_is_named(policy: Policy) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    message = one_line(VLLM(url=url, retries=1, backoff_seconds=0.01), policy)
    assert f"{url}/health was tried 2 times: no answer" in message
    assert "vllm serve" in message


def test_a_slow_server_runs_into_the_timeout_once(server: TinyVLLM, policy: Policy) -> None:
    server.faults["/v1/completions"] = deque([slow(2.0)] * 3)
    message = one_line(engine(server, timeout_seconds=0.3), policy)
    assert "did not answer within 0.3 s: raise engine.timeout_seconds" in message


def test_a_server_that_dies_midway_hands_over_what_it_finished(server: TinyVLLM, policy: Policy) -> None:
    server.dies_after = 2
    sampling = Sampling(temperature=0.0, max_new_tokens=4, concurrent=1)
    requests = [Request(prompt_ids=policy.render(p.prompt), streams=(0,)) for p in problems()]
    answers = engine(server, retries=1).generate(policy, requests, sampling)
    assert [next(answers)[0], next(answers)[0]] == [0, 1]
    with pytest.raises(UserError, match="no answer"):
        next(answers)


def _without(*keys: str) -> Callable[[dict[str, Any]], None]:
    def spoil(choice: dict[str, Any]) -> None:
        for key in keys:
            choice[key] = None

    return spoil


def _one_too_few(choice: dict[str, Any]) -> None:
    choice["logprobs"]["token_logprobs"].pop()


def _too_many_tokens(choice: dict[str, Any]) -> None:
    choice["token_ids"] += [1] * 20


def _not_finite(choice: dict[str, Any]) -> None:
    choice["logprobs"]["token_logprobs"][0] = float("nan")


def _aborted(choice: dict[str, Any]) -> None:
    choice["finish_reason"] = "abort"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_without("logprobs"), "no log-probabilities for 12 tokens, expected one number for each"),
        (_one_too_few, "11 log-probabilities for 12 tokens"),
        (_without("token_ids"), "no token_ids, expected 1 to 12"),
        (_too_many_tokens, "32 token_ids, expected 1 to 12"),
        (_not_finite, "log-probabilities that are not finite"),
        (_aborted, "broke a completion off (abort)"),
    ],
)
def test_answers_that_lack_something_are_refused(
    server: TinyVLLM, policy: Policy, spoil: Callable[[dict[str, Any]], None], said: str
) -> None:
    server.spoil = spoil
    message = one_line(engine(server), policy)
    assert server.url in message
    assert said in message


# ---------------------------------------------------------------------- servers that are the wrong ones
def test_a_server_of_another_model_is_refused_before_anything_is_asked(
    server: TinyVLLM, tiny_folders: dict[str, Path]
) -> None:
    other = Policy(PolicyOptions(model=str(tiny_folders["qwen3"])))
    message = one_line(engine(server), other)
    assert f"serves '{server.served}', and the policy is '{tiny_folders['qwen3']}'" in message
    assert not server.asked("/v1/completions")


def test_the_served_name_may_differ_when_it_is_named(server: TinyVLLM, policy: Policy) -> None:
    server.name = "student"
    assert completions(policy, engine(server), GREEDY)  # recognised by the folder it was loaded from
    server.folder = "/elsewhere/on/the/server"
    assert "set engine.model to the served name" in one_line(engine(server), policy)
    assert completions(policy, engine(server, model="student"), GREEDY)


def test_a_context_that_is_too_short_is_found_first(server: TinyVLLM, policy: Policy) -> None:
    server.max_model_len = 20
    message = one_line(engine(server), policy)
    assert "reads 20 tokens at most" in message
    assert "--max-model-len" in message
    assert not server.asked("/v1/completions")


def test_the_key_comes_from_the_environment_and_is_never_kept(
    server: TinyVLLM, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.api_key = "open sesame"
    assert "engine.api_key_variable" in one_line(engine(server), policy)
    monkeypatch.setenv("TINY_KEY", "open sesame")
    keyed = engine(server, api_key_variable="TINY_KEY")
    assert completions(policy, keyed, GREEDY)
    assert "sesame" not in repr(vars(keyed))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "localhost:8000"}, "engine.url must be an address"),
        ({"url": []}, "engine.url must be an address"),
        ({"url": "http://x", "timeout_seconds": 0}, "engine.timeout_seconds must be"),
        ({"url": "http://x", "retries": -1}, "engine.retries must be"),
        ({"url": "http://x", "backoff_seconds": -1}, "engine.backoff_seconds must be"),
        ({"url": "http://x", "api_key_variable": "NO_SUCH_KEY"}, "variable 'NO_SUCH_KEY' is not set"),
    ],
)
def test_impossible_options_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        VLLM(**options)


def test_configurations_name_an_imported_engine_by_its_class() -> None:
    class Module:
        def __init__(self, *, engine: Engine | None = None) -> None:
            self.engine = engine

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Module, "model")

    def built(engine: dict[str, Any]) -> Engine:
        return parser.instantiate(parser.parse_object({"model": {"engine": engine}})).model.engine

    remote = built({"class_path": "VLLM", "init_args": {"url": ["http://a:1", "http://b:2"], "retries": 1}})
    assert isinstance(remote, VLLM)
    assert remote.urls == ["http://a:1", "http://b:2"]
    assert isinstance(built({"class_path": "InProcess"}), InProcess)
    with pytest.raises(ValueError, match=r"engine\.retries must be 0 or more") as caught:
        built({"class_path": "VLLM", "init_args": {"url": "http://a:1", "retries": -1}})
    assert isinstance(caught.value.__cause__, UserError)  # what the command line prints


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(UserError, match=r"needs the package 'httpx': pip install 'lit-reason\[vllm\]'"):
        VLLM(url="http://x")
