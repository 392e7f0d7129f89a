"""Rebuild the embedded model from nothing: tokenizer, architecture, SFT by configs/sft.yaml, measurements, card.

    python tools/build_nano.py

takes a good quarter of an hour on two CPU cores, less on a GPU; the same machine builds the same weights every time.
Further options go to `lit-reason fit`: `--trainer.max_steps 20 --data.validation_problems 50` tries the whole way in
seconds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from transformers import GenerationConfig, LlamaConfig

from lit_reason import nano
from lit_reason.cli import LitReasonCLI, quieten
from lit_reason.modules.base import correct
from lit_reason.nano.tokenizer import CONTEXT, build_tokenizer
from lit_reason.policy import EMPTY_THINK, Policy
from lit_reason.rollout import Sampling, roll_out
from lit_reason.tasks.nano_traces import NanoTraces
from lit_reason.types import Problem, Rollout

RECIPE = Path(__file__).parents[1] / "configs" / "sft.yaml"

SAMPLED = Sampling(max_new_tokens=96)

CARD = """\
---
license: apache-2.0
library_name: transformers
tags: [reasoning, synthetic]
---
# nano

A Llama of {parameters:,} parameters that sums, spells words backward and judges syllogisms. It exists to try
reinforcement learning on: it knows two habits, to blurt an answer (`<think> </think> <answer> 42 </answer>`) and to
work it out in steps inside the think block, and mostly blurts. Rewarding nothing but right answers teaches it to think.

It was trained from random weights on {examples:,} procedurally generated problems of
[reasoning-gym](https://github.com/open-thought/reasoning-gym) with solutions written by rule
(`lit_reason/nano/traces.py`), and on no other text. Questions it has not seen the like of are beyond it.
`tools/build_nano.py` rebuilds it.

On {problems:,} held-out problems of that training task, greedy and sampled at temperature 1
({samples:,} completions), in percent:

| task | greedy | sampled | worked out | right when blurted | right when worked out |
|---|---|---|---|---|---|
{rows}

The chat template takes several turns, system messages, and `enable_thinking=False`, which starts the answer with an
empty think block; the training had single questions only.
"""


def blank(folder: Path) -> Path:
    """Write tokenizer and architecture without weights, which `random_weights` is to draw."""
    traces = NanoTraces(worked=1.0).problems("train")
    texts = []
    for problem in traces[:4000]:
        assert problem.completion is not None
        texts += [problem.prompt[-1]["content"], problem.completion.partition("</think>")[0].removeprefix("<think>")]
    tokenizer = build_tokenizer(texts, least=20)
    tokenizer.save_pretrained(folder)
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)
    GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)
    return folder


def measure(policy: Policy, problems: list[Problem]) -> tuple[list[Rollout], list[Rollout]]:
    """Greedy and sampled answers to the same problems, all in the template's default mode."""
    problems = [replace(problem, think=None) for problem in problems]
    return roll_out(policy, problems, SAMPLED.greedy()), roll_out(policy, problems, SAMPLED, group_size=4)


def rows(greedy: list[Rollout], sampled: list[Rollout]) -> str:
    """The card's table, a line for each task."""
    by_task: dict[str, tuple[list[Rollout], list[Rollout]]] = defaultdict(lambda: ([], []))
    for kind, rollouts in enumerate((greedy, sampled)):
        for rollout in rollouts:
            by_task[rollout.problem.task][kind].append(rollout)
    lines = []
    for task, (best, drawn) in sorted(by_task.items()):
        blurted = [r for r in drawn if r.text.startswith(EMPTY_THINK)]
        worked = [r for r in drawn if not r.text.startswith(EMPTY_THINK)]
        cells = [_share(best), _share(drawn), f"{100 * len(worked) / len(drawn):.0f}", _share(blurted), _share(worked)]
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _share(rollouts: list[Rollout]) -> str:
    return f"{100 * sum(map(correct, rollouts)) / len(rollouts):.0f}" if rollouts else "-"


def main() -> None:
    """Build, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=nano.PATH, help="folder of the model")
    parser.add_argument("--run", type=Path, default=Path("runs/build-nano"), help="run directory of the training")
    arguments, more = parser.parse_known_args()
    quieten()
    with tempfile.TemporaryDirectory() as folder:
        start = str(blank(Path(folder)))
        run = ["--run_dir", str(arguments.run), "--model.init_args.policy.model", start]
        cli = LitReasonCLI(["fit", "--config", str(RECIPE), *run, *more])
    data, policy = cli.datamodule, cli.model.policy
    problems = data.task.problems("validation")[: 2 * data.validation_problems]
    greedy, sampled = measure(policy, problems)
    table = rows(greedy, sampled)
    policy.save_pretrained(arguments.out)
    (arguments.out / "model.safetensors").chmod(0o644)  # written for the owner alone, and this one ships
    card = CARD.format(
        parameters=sum(p.numel() for p in policy.parameters()),
        examples=data.phases_done * data.prompts_per_step,
        problems=len(problems),
        samples=len(sampled),
        rows=table,
    )
    (arguments.out / "README.md").write_text(card, encoding="utf-8")
    print(table)
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
