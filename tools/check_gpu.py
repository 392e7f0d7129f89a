"""What the tests show on a CPU, on this machine's GPU: the engine's tokens, their log-probabilities, and a step's loss.

    python tools/check_gpu.py

Prints a line for each check, and ends with code 1 when one fails.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # after the environment is set
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lit_reason import GRPO, PolicyOptions, Problem, Rollout, Sampling
from lit_reason.batching import collate
from lit_reason.engines.generate import Generate
from lit_reason.engines.in_process import InProcess, _Batch
from lit_reason.policy import LoRA, Policy
from lit_reason.rollout import Engine, roll_out
from lit_reason.tasks.nano_traces import NanoTraces
from lit_reason.tiny import tiny_policy

PROBLEMS = NanoTraces(size=32).problems("train")
MIXED = {"32-true": 1e-4, "bf16-mixed": 5e-2}
"""Precision -> how far recorded log-probabilities may be from the trainer's."""


@contextmanager
def mode(precision: str) -> Iterator[None]:
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16-mixed"):
        yield


def answers(policy: Policy, sampling: Sampling, engine: Engine, group: int = 4) -> list[Rollout]:
    return roll_out(policy, [PROBLEMS[i] for i in range(12)], sampling, group, engine=engine)


def ids(rollouts: Sequence[Rollout]) -> list[list[int]]:
    return [r.completion_ids.tolist() for r in rollouts]


def share_equal(one: Sequence[Rollout], other: Sequence[Rollout]) -> float:
    return sum(a == b for a, b in zip(ids(one), ids(other), strict=True)) / len(one)


def drift(policy: Policy, rollouts: Sequence[Rollout]) -> float:
    """The largest difference between recorded log-probabilities and those the trainer computes."""
    batch = collate(list(rollouts))
    for name in type(batch).__dataclass_fields__:
        if isinstance(value := getattr(batch, name), torch.Tensor):
            setattr(batch, name, value.cuda())
    with torch.no_grad():
        logprobs, _ = policy.logprobs(batch)
    assert batch.sampler_logprobs is not None
    return float((logprobs - batch.sampler_logprobs)[batch.present].abs().max())


def engine_checks(folder: str, name: str) -> Iterator[tuple[str, float, bool]]:
    """Each check: what it compares, the figure, whether it is good enough."""
    made: list[_Batch] = []
    create = _Batch.__init__
    _Batch.__init__ = lambda self, *args: (create(self, *args), made.append(self))[0]  # type: ignore[method-assign,assign,func-returns-value]
    for lora in (None, LoRA(rank=4)):
        policy = Policy(PolicyOptions(model=folder, lora=lora)).cuda()
        for precision, allowed in MIXED.items():
            with mode(precision):
                what = f"{name}, {'all weights' if lora is None else 'adapters'}, {precision}"
                sampling = Sampling(max_new_tokens=100)
                ours = answers(policy, sampling, InProcess())
                batch = made[-1]
                yield f"{what}: steps written out", float(batch.checked), batch.checked
                yield f"{what}: steps recorded", len(batch.recorder.graphs), bool(batch.recorder.graphs)
                if precision == "32-true":
                    plain = answers(policy, sampling, Generate())
                    yield f"{what}: sampled as by generate", (s := share_equal(ours, plain)), s >= 0.95
                    greedy = [answers(policy, sampling.greedy(), engine, 1) for engine in (InProcess(), Generate())]
                    yield f"{what}: greedy as by generate", (s := share_equal(*greedy)), s == 1.0
                    few = answers(policy, replace(sampling, concurrent=5), InProcess())
                    yield f"{what}: the same five at a time", (s := share_equal(ours, few)), s >= 0.95
                yield f"{what}: log-probabilities, largest difference", (d := drift(policy, ours)), d < allowed
    _Batch.__init__ = create  # type: ignore[method-assign]


def losses(accelerator: str, precision: str) -> list[float]:
    """Of three steps on the same completions, so that only arithmetic differs."""
    seen: list[float] = []

    class Watched(GRPO):
        def rollout(self, problems: Sequence[Problem], group_size: int = 1, sampling: Sampling | None = None) -> list[Rollout]:  # fmt: skip  # noqa: E501
            generator = torch.Generator().manual_seed(self.phase)
            rollouts = []
            for group, problem in enumerate(problems):
                prompt = self.policy.render(problem.prompt)
                for _ in range(group_size):
                    length = int(torch.randint(5, 40, (), generator=generator))
                    completion = torch.randint(5, 200, (length,), generator=generator)
                    rollouts.append(
                        Rollout(problem=problem, prompt_ids=prompt, completion_ids=completion, text="", group=group)
                    )
            return rollouts

    def reward(rollout: Rollout) -> float:
        return float(rollout.completion_ids.sum() % 7)

    module = Watched(
        rewards=[reward],  # type: ignore[list-item]  # resolved as in YAML
        group_size=4,
        minibatches=2,
        loss={"grpo": {"beta": 0.1}},  # type: ignore[arg-type]
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-4),
    )
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=6, accelerator=accelerator, devices=1, precision=precision, **options)  # type: ignore[arg-type]
    update = module.updater.step
    module.updater.step = lambda rollouts: (found := update(rollouts), seen.append(found["loss"]))[0]  # type: ignore[method-assign,func-returns-value]
    trainer.fit(module, DataLoader([PROBLEMS[i] for i in range(12)], batch_size=4, collate_fn=list))
    return seen


def step_checks() -> Iterator[tuple[str, float, bool]]:
    cpu = losses("cpu", "32-true")
    for precision, allowed in (("32-true", 1e-5), ("bf16-mixed", 1e-2)):
        found = losses("cuda", precision)
        worst = max(abs(a - b) for a, b in zip(cpu, found, strict=True))
        yield f"losses of six steps against the CPU's, {precision}", worst, worst < allowed and len(cpu) == 6
    assert any(a != b for a, b in pairwise(cpu))


def main() -> int:
    if not torch.cuda.is_available():
        print("error: there is no GPU here")
        return 2
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    good = True
    with tempfile.TemporaryDirectory() as folder:
        qwen = tiny_policy(folder, "qwen3")
        for checks in (engine_checks("nano", "nano"), engine_checks(qwen, "tiny Qwen3"), step_checks()):
            for what, figure, passed in checks:
                print(f"{'ok    ' if passed else 'FAILED'} {what}: {figure:.3g}", flush=True)
                good &= passed
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
