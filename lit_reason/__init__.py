"""lit-reason: teach small language models to reason, in Lightning.

The names a script needs are importable from here; they load lazily, so that `lit-reason --help` never waits for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lit_reason.data import ReasoningData as ReasoningData
    from lit_reason.loss import Loss as Loss
    from lit_reason.loss import PolicyLoss as PolicyLoss
    from lit_reason.modules.grpo import GRPO as GRPO
    from lit_reason.modules.rejection import RejectionSampling as RejectionSampling
    from lit_reason.modules.sft import SFT as SFT
    from lit_reason.policy import LoRA as LoRA
    from lit_reason.policy import Policy as Policy
    from lit_reason.policy import PolicyOptions as PolicyOptions
    from lit_reason.reward import Judgement as Judgement
    from lit_reason.reward import Reward as Reward
    from lit_reason.rollout import Sampling as Sampling
    from lit_reason.task import Task as Task
    from lit_reason.types import LossInputs as LossInputs
    from lit_reason.types import Problem as Problem
    from lit_reason.types import Rollout as Rollout

_HOME = {
    "ReasoningData": "data",
    "Loss": "loss",
    "PolicyLoss": "loss",
    "GRPO": "modules.grpo",
    "RejectionSampling": "modules.rejection",
    "SFT": "modules.sft",
    "LoRA": "policy",
    "Policy": "policy",
    "PolicyOptions": "policy",
    "Judgement": "reward",
    "Reward": "reward",
    "Sampling": "rollout",
    "Task": "task",
    "LossInputs": "types",
    "Problem": "types",
    "Rollout": "types",
}
__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604 - the names of the lazy table below are strings


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a lazy module attribute can be any of the exported objects
    if name not in _HOME:
        raise AttributeError(f"module 'lit_reason' has no attribute '{name}'")
    return getattr(importlib.import_module(f"lit_reason.{_HOME[name]}"), name)
