"""`lit-reason fit --dry_run`: what a run would take in memory, by part, before anything is loaded.

Tensors are counted on the run's own code (`simulation.py`); what strategies, optimizers and quantisation make of the
weights is arithmetic. Completions are taken to be as long as they may be, so the figures are upper ends.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from rich.table import Table
from torch import Tensor, nn

from lit_reason.attention import ON_CPU
from lit_reason.batching import learns, micro_batches, minibatches, total_length
from lit_reason.simulation import Simulation
from lit_reason.types import Problem, Rollout, UserError

if TYPE_CHECKING:
    from lit_reason.data import ReasoningData
    from lit_reason.modules.base import Reasoner
    from lit_reason.policy import Policy

MIB = 2**20
QUANTISED = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
"""Bytes of a weight: 4 bits and, double quantised, a byte for 64 and a float for 256 of those; LLM.int8's 8 bits."""


@dataclass(kw_only=True, frozen=True)
class Phase:
    """What one phase of a run holds at its peak, on one rank.

    Attributes:
        name: rollout, validation or update.
        parts: bytes by what they are for.
    """

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values())


def estimate(module: Reasoner, data: ReasoningData, trainer: Trainer) -> list[Phase]:
    """The peaks of a fit's phases, on one rank.

    Args:
        module: not configured yet; its policy is simulated.
        data: set up here.
        trainer: whose strategy, devices and precision count.

    Returns:
        A phase each for rollouts (not of SFT), validation (where there is one) and update.
    """
    simulation = Simulation(module.policy_options, str(trainer.precision))
    module.policy = simulation.policy
    ranks = trainer.num_devices * trainer.num_nodes
    data.setup("fit")
    asked = _first(data.task.problems("train"), data.prompts_per_step, ranks)
    held = _held(module, simulation, trainer, ranks)
    gathered = held.pop("gathered weights", 0)
    phases = []
    on_cpu = trainer.strategy.root_device.type == ON_CPU
    sampled = getattr(module, "group_size", 0)
    exams = min(data.validation_problems, len(data.task.problems("validation")))
    drawn = {
        "rollout": (asked, sampled),
        "validation": (
            _first(data.task.problems("validation"), min(exams, data.validation_batch), ranks),
            max(1, module.validation_samples),
        ),
    }
    for name, (problems, completions) in drawn.items():
        if not problems or not completions:
            continue
        if (simulation.policy.context or math.inf) <= module.sampling.max_new_tokens:
            raise UserError(
                f"sampling.max_new_tokens: {module.sampling.max_new_tokens} leaves no room for a prompt in the "
                f"{simulation.policy.context} tokens that '{simulation.policy.options.model}' knows"
            )
        prompts = [simulation.policy.render(p.prompt, p.think) for p in problems]
        limit = (simulation.policy.context or 10**9) - module.sampling.max_new_tokens
        prompts = [p for p in prompts if len(p) <= limit]
        if prompts and module.engine is None:
            cache, peak = simulation.rollout(prompts, completions, module.sampling)
            whole = simulation.weights if "sharded" in _kind(trainer) else 0
            parts = {"gathered weights": whole, "plain weights": _plain(simulation, on_cpu=on_cpu), "KV cache": cache}
            phases.append(Phase(name=name, parts={**held, **parts, "logits and work": max(0, peak - cache)}))
    activations, work = _update(module, simulation, asked, on_cpu=on_cpu)
    parts = {"gathered weights": gathered, "activations": activations, "logits and work": work}
    return [*phases, Phase(name="update", parts={**held, **parts})]


def _held(module: Reasoner, simulation: Simulation, trainer: Trainer, ranks: int) -> dict[str, int]:
    """What lies in memory all the time, and what is gathered for an update."""
    options = module.policy_options
    trained = [p for p in simulation.policy.parameters() if p.requires_grad]
    weights, gradients = simulation.weights, sum(p.nbytes for p in trained)
    if options.quantization is not None:
        rate = QUANTISED[options.quantization]
        weights -= sum(w.nbytes - round(w.numel() * rate) for w in _quantisable(simulation.policy))
    reference = weights if module.updater.loss.needs_reference and options.lora is None else 0
    reference += weights if getattr(module, "restart", False) else 0  # a copy of what each round starts from
    state = round(sum(p.numel() for p in trained) * _state_bytes(module, trained[0].dtype))
    held = {"weights": weights, "reference": reference, "optimizer": state, "gradients": gradients}
    strategy = _kind(trainer)
    if "sharded" in strategy:
        layers = max((m for m in simulation.policy.modules() if isinstance(m, nn.ModuleList)), key=len)
        layer = max(_bytes(m) for m in layers)
        held = {name: -(-size // ranks) for name, size in held.items()}
        # the part outside the layers stays gathered, a layer is gathered ahead, and one's gradients await their sum
        held["gathered weights"] = simulation.weights - _bytes(layers) + (2 if gradients == 0 else 3) * layer
    if "ddp" in strategy:
        held["DDP buckets"] = gradients
    return held


def _plain(simulation: Simulation, *, on_cpu: bool) -> int:
    """What a rollout adds to the weights: with the adapters merged, or dequantised from 4 bits."""
    if simulation.policy.options.quantization == "nf4":
        return sum(w.numel() for w in _quantisable(simulation.policy)) * (4 if on_cpu else 2)
    return simulation.adapted() if simulation.merges() else 0


def _quantisable(policy: Policy) -> list[Tensor]:
    """The weights that quantisation changes: of linear layers, but for the head and the adapters."""
    head = policy.causal_lm.get_output_embeddings()
    named = [(name, m) for name, m in policy.named_modules() if isinstance(m, nn.Linear) and m is not head]
    return [m.weight for name, m in named if "lora_" not in name]


def _bytes(module: nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters())


def _kind(trainer: Trainer) -> str:
    """How weights are spread: single, ddp or sharded."""
    if isinstance(trainer.strategy, ModelParallelStrategy | FSDPStrategy):
        return "sharded"
    return "ddp" if isinstance(trainer.strategy, DDPStrategy) else "single"


def _state_bytes(module: Reasoner, dtype: torch.dtype) -> float:
    """Bytes an optimizer keeps for a parameter: what it does keep for a small matrix."""
    weight = nn.Parameter(torch.zeros(256, 128, dtype=dtype))
    weight.grad = torch.zeros_like(weight)
    optimizer: Any = module.make_optimizer([weight])
    optimizer.step()
    state = [x for x in optimizer.state[weight].values() if isinstance(x, Tensor) and x.numel() > 1]
    return sum(x.nbytes for x in state) / weight.numel()


def _first(problems: Sequence[Problem], count: int, ranks: int) -> list[Problem]:
    """One rank's share of a batch."""
    return [problems[i] for i in range(0, min(count, len(problems)), ranks)]


def _update(module: Reasoner, simulation: Simulation, problems: list[Problem], *, on_cpu: bool) -> tuple[int, int]:
    """Bytes of activations, and of all else that an update's largest micro-batch holds."""
    updater, policy = module.updater, simulation.policy
    rollouts = _longest(module, simulation, problems)
    if not rollouts:
        return 0, 0
    sharing = max(total_length(r) for r in rollouts) <= policy.window
    windows = minibatches(rollouts, updater.minibatches, torch.Generator().manual_seed(0))
    cut = [
        micro_batches(
            window,
            updater.tokens_per_microbatch,
            packing=updater.packing,
            sharing=sharing,
            prompt_copies=not on_cpu,
        )
        for window in windows
        if window
    ]
    largest = max((group for groups in cut for group in groups), key=_tokens)
    again = max(map(len, cut)) > 1
    held, peak = simulation.update(largest, sharing=sharing, packing=updater.packing, again=again)
    gradients = 0 if again else sum(p.nbytes for p in policy.parameters() if p.requires_grad)
    peak = max(0, peak - gradients)  # of a single micro-batch they are counted within
    return min(held, peak), max(0, peak - held)


def _tokens(rollouts: list[Rollout]) -> int:
    """Tokens of a micro-batch without padding, each prompt once."""
    prompts = {r.prompt_ids.numpy().tobytes(): len(r.prompt_ids) for r in rollouts}
    return sum(prompts.values()) + sum(r.length for r in rollouts)


def _longest(module: Reasoner, simulation: Simulation, problems: list[Problem]) -> list[Rollout]:
    """What an update learns from when every completion is as long as it may be; worked examples are what they are."""
    written = getattr(module, "written", None)
    if written is not None:
        return [r for r in written(problems) if bool(learns(r).any())]
    ids = torch.zeros(module.sampling.max_new_tokens, dtype=torch.int64)
    group: int = getattr(module, "group_size", 1)
    # no more than fill a micro-batch of each window
    enough = (module.updater.tokens_per_microbatch // len(ids) + 2) * module.updater.minibatches
    kept = min(getattr(module, "keep", group), group, enough)
    prompts = [simulation.policy.render(p.prompt, p.think) for p in problems]
    return [
        Rollout(problem=problem, prompt_ids=prompt, completion_ids=ids, text="", group=g)
        for g, (problem, prompt) in enumerate(zip(problems, prompts, strict=True))
        for _ in range(kept)
    ]


# ------------------------------------------------------------------ what a person sees
def report(phases: Sequence[Phase], trainer: Trainer) -> tuple[Table, str]:
    """The table, and whether the largest phase fits."""
    device = trainer.strategy.root_device
    ranks = trainer.num_devices * trainer.num_nodes
    where = f"{_kind(trainer)}, {ranks} rank{'s' if ranks > 1 else ''}, {trainer.precision}"
    table = Table(f"MiB a rank ({where})", box=None)
    for phase in phases:
        table.add_column(phase.name, justify="right")
    names = list(dict.fromkeys(name for phase in phases for name in phase.parts))
    for name in names:
        sizes = [phase.parts.get(name, 0) for phase in phases]
        if any(sizes):
            table.add_row(name, *(f"{size / MIB:,.1f}" if size else "-" for size in sizes))
    table.add_row("total", *(f"{phase.total / MIB:,.1f}" for phase in phases), style="bold")
    largest = max(phases, key=lambda phase: phase.total)
    if device.type == "cuda":
        there, sharing = torch.cuda.get_device_properties(device).total_memory, 1
        name = f"of {torch.cuda.get_device_name(device)}"
    else:
        there, sharing = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), trainer.num_devices
        name = "of this machine" + (f", shared by {sharing} ranks" if sharing > 1 else "")
    needed = largest.total * sharing
    share = f"{needed / MIB:,.0f} MiB of the {there / MIB:,.0f} MiB {name}"
    verdict = "fits" if needed < there else "does not fit"
    return table, f"peak in {largest.name}: {share}; {verdict} (Python and its libraries not counted)"
