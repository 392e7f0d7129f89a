"""What `bench_grpo.py` measures: models, prompts, traces and a reward that both sides share.

A workload is data. Its model folder is written anew for every run, so that both sides read the very same files, and
nothing is downloaded: weights are nano's own or random from a fixed seed, and the tokenizer is nano's.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

NANO = Path(__file__).parents[1] / "lit_reason" / "nano"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

NEVER = "<|never|>"
"""End-of-sequence token of workloads with a fixed length: its id lies beyond the vocabulary, so none is ever drawn."""

SMOLLM: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "vocab_size": 49152,
}
"""SmolLM-135M's shape; nano's config says the rest (Llama, tied embeddings, rope theta 10000)."""

LEARNING_RATE = 1e-6
"""So small that the model, and with it the work, stays the same over the steps."""

FRAME = 9
"""Tokens of a trace beside its steps: roles, ends, think tags and a question of two digits."""

Message = dict[str, str]


@dataclass(kw_only=True, frozen=True)
class Workload:
    """One phase of work, the same for both sides.

    Attributes:
        about: one line for the table.
        prompts: problems a phase; of SFT: examples a step.
        group: completions a prompt; 0 makes it SFT.
        new_tokens: completions are cut off there.
        fixed: no completion ends before `new_tokens`.
        random_weights: fresh weights from a fixed seed instead of nano's.
        shape: what differs from nano's config.
        examples: worked sums in the system prompt; 0 leaves the system prompt out.
        terms: fewest and most terms of a problem's sum.
        passes: passes over a phase.
        minibatches: optimizer steps of a pass.
        beta: weight of the KL term (k3).
        lora_rank: rank of adapters on all linear layers, alpha twice that; 0 trains all weights.
        ours_tokens: our `tokens_per_microbatch`, the fastest of those tried.
        ours_packing: our `packing`, likewise.
        trl_batch: TRL's `per_device_train_batch_size`, likewise: on a CPU less than the whole minibatch is faster.
        steps: measured steps unless the command line says otherwise.
    """

    about: str
    prompts: int
    group: int
    new_tokens: int
    fixed: bool = False
    random_weights: bool = True
    shape: dict[str, Any] | None = None
    examples: int = 0
    terms: tuple[int, int] = (2, 2)
    passes: int = 1
    minibatches: int = 1
    beta: float = 0.0
    lora_rank: int = 0
    ours_tokens: int = 4096
    ours_packing: bool = False
    trl_batch: int
    steps: int = 5

    @property
    def completions(self) -> int:
        """Sequences of a phase."""
        return self.prompts * max(self.group, 1)


W2 = Workload(
    about="nano's shape, random weights; 8 long prompts x 8, up to 512 new tokens, natural ends",
    prompts=8,
    group=8,
    new_tokens=512,
    examples=13,
    terms=(2, 4),
    trl_batch=8,
)

WORKLOADS = {
    "W1": Workload(
        about="nano; 16 prompts x 8, 48 new tokens each",
        prompts=16,
        group=8,
        new_tokens=48,
        fixed=True,
        random_weights=False,
        trl_batch=32,
        steps=9,
    ),
    "W2": W2,
    "W3": replace(
        W2, about="as W2, with 2 passes x 4 minibatches and beta 0.04", passes=2, minibatches=4, beta=0.04, steps=3
    ),
    "W4": Workload(
        about="SmolLM-135M's shape, random weights, LoRA of rank 32; 8 prompts x 6, 300 new tokens each",
        prompts=8,
        group=6,
        new_tokens=300,
        fixed=True,
        shape=SMOLLM,
        examples=6,
        terms=(2, 12),
        lora_rank=32,
        ours_tokens=2048,
        trl_batch=4,
        steps=2,
    ),
    "W5": Workload(
        about="SFT, nano's shape, random weights; 64 traces of 20 to 400 tokens a step",
        prompts=64,
        group=0,
        new_tokens=400,
        trl_batch=2,
        ours_tokens=2048,
        ours_packing=True,
        steps=15,
    ),
    "tiny": Workload(
        about="nano; a check that the benchmark runs, not a measurement",
        prompts=2,
        group=2,
        new_tokens=4,
        fixed=True,
        random_weights=False,
        trl_batch=4,
        steps=1,
    ),
}


def write_model(workload: Workload, folder: Path, seed: int) -> None:
    """Write the model folder both sides load: weights, configuration, tokenizer, chat template.

    Args:
        workload: whose model.
        folder: made when it does not exist.
        seed: of random weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copy(NANO / name, folder / name)
    config = json.loads((NANO / "config.json").read_text()) | (workload.shape or {})
    generation = json.loads((NANO / "generation_config.json").read_text())
    if workload.fixed:
        config["eos_token_id"] = generation["eos_token_id"] = config["vocab_size"]
        end_with_nothing(folder, config["vocab_size"])
    (folder / "config.json").write_text(json.dumps(config))
    if workload.random_weights:
        _write_random_weights(folder, seed)
    else:
        shutil.copy(NANO / "model.safetensors", folder / "model.safetensors")
    (folder / "generation_config.json").write_text(json.dumps(generation))  # saving weights wrote another


def _write_random_weights(folder: Path, seed: int) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    model.save_pretrained(folder)


def end_with_nothing(folder: Path, vocabulary: int) -> None:
    """Make `NEVER` the tokenizer's end of sequence, and let turns of the template end as they did.

    Ids between nano's vocabulary and the model's get words of four letters, so that decoding is real work there too.
    """
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    added = tokenizer["added_tokens"]
    added.append(added[0] | {"id": vocabulary, "content": NEVER})
    # an added token keeps its id only where the vocabulary below lists it; otherwise it is numbered after that
    words = tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in added}
    tokenizer["model"]["vocab"] = {_word(i): i for i in range(len(words) - 1, vocabulary)} | words
    path.write_text(json.dumps(tokenizer))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    end = settings["eos_token"]
    path.write_text(json.dumps(settings | {"eos_token": NEVER}))
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("eos_token", f"'{end}'"))


def _word(index: int) -> str:
    """A word of four letters with a space before it, written as byte-level tokenizers do."""
    letters = []
    for _ in range(4):
        index, letter = divmod(index, 26)
        letters.append(chr(ord("a") + letter))
    return "Ġ" + "".join(letters)


def prompts(workload: Workload, phases: int, seed: int) -> list[list[Message]]:
    """Chat prompts of `phases` phases, one after another.

    Args:
        workload: whose prompts.
        phases: how many phases.
        seed: of the numbers in them.
    """
    draw = random.Random(seed)
    shared = [(draw.randint(100, 999), draw.randint(100, 999)) for _ in range(workload.examples)]
    system = "State the final answer as follows: " + ", ".join(f"{a} + {b} = {a + b}" for a, b in shared)
    opening = [{"role": "system", "content": system}] if shared else []
    asked = []
    for _ in range(phases * workload.prompts):
        terms = [str(draw.randint(10, 999)) for _ in range(draw.randint(*workload.terms))]
        question = f"State the final answer to the following arithmetic problem: {' + '.join(terms)} ="
        asked.append([*opening, {"role": "user", "content": question}])
    return asked


def traces(workload: Workload, phases: int, seed: int) -> list[tuple[list[Message], str]]:
    """Prompts with worked completions to learn from, evenly from 20 tokens to `new_tokens` in all.

    Args:
        workload: whose traces.
        phases: how many steps of them.
        seed: of the numbers in them.
    """
    draw = random.Random(seed)
    rows = []
    for _ in range(phases * workload.prompts):
        digits = draw.randint(20, workload.new_tokens) - FRAME
        steps = "".join(str(draw.randint(0, 9)) for _ in range(digits))
        rows.append(([{"role": "user", "content": f"{draw.randint(10, 99)} ="}], f"<think>{steps}</think>"))
    return rows


def reward(text: str) -> float:
    """Share of characters with an even code: cheap, a function of the text only, and different within any group."""
    return sum(ord(character) % 2 == 0 for character in text) / max(len(text), 1)
