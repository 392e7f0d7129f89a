"""The benchmark's workloads are what they say, and our side of one runs; no peer is needed for that."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TOOLS))
    import bench_workloads

    return bench_workloads


@pytest.fixture
def nano() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TOOLS.parent / "lit_reason" / "nano")


def lengths(tokenizer: Any, prompts: list[Any]) -> list[int]:
    return [len(tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False)) for p in prompts]


def test_every_workload_divides_into_whole_batches_of_the_peer_and_whole_groups(bench: Any) -> None:
    for name, work in bench.WORKLOADS.items():
        assert work.completions % (work.minibatches * work.trl_batch) == 0, name
        assert work.prompts % work.minibatches == 0, name


@pytest.mark.parametrize(("name", "shortest", "longest"), [("W2", 230, 270), ("W3", 230, 270), ("W4", 100, 200)])
def test_prompts_are_as_long_as_said_and_repeat_with_the_seed(
    bench: Any, nano: Any, name: str, shortest: int, longest: int
) -> None:
    work = bench.WORKLOADS[name]
    prompts = bench.prompts(work, 3, 0)
    assert len(prompts) == 3 * work.prompts
    assert shortest <= min(lengths(nano, prompts)) <= max(lengths(nano, prompts)) <= longest
    assert bench.prompts(work, 3, 0) == prompts
    assert bench.prompts(work, 3, 1) != prompts


def test_traces_have_20_to_400_tokens_prompt_and_end_included(bench: Any, nano: Any) -> None:
    rows = bench.traces(bench.WORKLOADS["W5"], 4, 0)
    turns = [[*prompt, {"role": "assistant", "content": completion}] for prompt, completion in rows]
    counts = [len(nano.apply_chat_template(turn, return_dict=False)) for turn in turns]
    assert (min(counts), max(counts)) == pytest.approx((20, 400), abs=5)
    assert min(counts) >= 20
    assert max(counts) <= 400


def test_a_fixed_length_is_an_end_of_sequence_beyond_the_vocabulary_and_prompts_stay_the_same(
    bench: Any, nano: Any, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    work = bench.WORKLOADS["W1"]
    bench.write_model(work, tmp_path, 0)
    tokenizer, config = AutoTokenizer.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)
    ends = {tokenizer.eos_token_id, config.eos_token_id, GenerationConfig.from_pretrained(tmp_path).eos_token_id}
    assert ends == {config.vocab_size}
    for prompt in bench.prompts(work, 1, 0):
        ids = [t.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False) for t in (tokenizer, nano)]
        assert ids[0] == ids[1]


def test_every_id_of_a_larger_vocabulary_decodes_to_text(bench: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for name in bench.TOKENIZER_FILES:
        (tmp_path / name).write_bytes((bench.NANO / name).read_bytes())
    bench.end_with_nothing(tmp_path, 2000)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 2001
    assert all(tokenizer.decode([i]) for i in range(2000))


def test_the_reward_tells_completions_apart_and_bears_an_empty_one(bench: Any) -> None:
    assert bench.reward("") == 0.0
    assert bench.reward("abcd") == 0.5  # the codes of b and d are even
    assert bench.reward("bdfa") == 0.75


def test_our_side_runs_and_reports_its_steps(tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    command = [sys.executable, str(TOOLS / "bench_grpo.py"), "--workload", "tiny", "--only", "ours", "--warmup", "0"]
    done = subprocess.run(
        [*command, "--threads", "1", "--json", str(report)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "| tiny | lit-reason |" in done.stdout
    side = json.loads(report.read_text())["workloads"]["tiny"]
    (step,) = side["steps"]["ours"]
    assert step["lengths"] == [4, 4, 4, 4]
    assert 0 < step["seconds"]["rollout"] < step["seconds"]["step"]
    assert side["sides"]["ours"]["tokens"] == 16
