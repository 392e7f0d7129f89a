"""What a checkpoint keeps of a module, and what it is checked for before a run goes on from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule

from lit_reason.checkpoint_state import (
    between_steps,
    of_all_ranks,
    of_this_rank,
    random_states,
    restore_random_states,
)
from lit_reason.loading import same_base
from lit_reason.policy import Policy, PolicyOptions
from lit_reason.sharding import plain_name
from lit_reason.task import Task
from lit_reason.types import UserError


class Kept(LightningModule):
    """The half of a `Reasoner` that goes into checkpoints and comes out of them."""

    policy: Policy
    policy_options: PolicyOptions
    phase: int
    weights_moved: bool
    base_metrics: dict[str, float] | None
    _fitted: bool
    _restored: dict[str, Any]  # of this rank, from a checkpoint

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]  # noqa: ANN401 - torch's has overloads
        """All of the policy, or of a policy with adapters what trains: its base is where it was loaded from."""
        state: dict[str, Any] = super().state_dict(*arguments, **options)
        trained = self._trained()
        if trained is not None:
            for name in [name for name in state if name.startswith("policy.") and name not in trained]:
                del state[name]
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:  # noqa: ANN401 - torch's answer has no public name
        """As torch does; of a policy with adapters, the base's weights may be there or not."""
        trained = self._trained()
        if trained is None:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        found = super().load_state_dict(state_dict, strict=False, assign=assign)
        absent = [name for name in found.missing_keys if name in trained]
        if absent or found.unexpected_keys:
            raise UserError(
                f"ckpt_path: the checkpoint has other adapters than the policy, {len(absent)} weights less and "
                f"{len(found.unexpected_keys)} more, such as {[*absent, *found.unexpected_keys][0]}: give policy.lora "
                "the options it was trained with"
            )
        found.missing_keys.clear()
        return found

    def _trained(self) -> set[str] | None:
        """Names of what trains where that alone goes into checkpoints, else None."""
        if "policy" not in self._modules or self.policy.base is None:
            return None
        return {f"policy.{plain_name(name)}" for name, p in self.policy.named_parameters() if p.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        between_steps(checkpoint["loops"], self.trainer.num_training_batches)
        checkpoint["lit_reason"] = {
            "module": type(self).__name__,
            "phase": self.phase,
            "base_metrics": self.base_metrics,
            "fitted": self._fitted,
            "ranks": of_all_ranks(self.rank_state()),
        }
        if self.policy.base is not None:
            options = self.policy_options
            base = {"model": options.model, "quantization": options.quantization, **self.policy.base}
            checkpoint["lit_reason"]["base"] = base

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        ours = checkpoint.get("lit_reason", {})
        written_by = ours.get("module")
        if written_by is not None and written_by not in {cls.__name__ for cls in type(self).__mro__}:
            raise UserError(
                f"ckpt_path: the checkpoint was written by {written_by}, not {type(self).__name__}. To train its "
                "policy further, give the run's folder 'model' as policy.model"
            )
        base = ours.get("base")
        if base is not None and "policy" in self._modules and not same_base(base, self.policy.base):
            here = self.policy_options
            raise UserError(
                f"ckpt_path: its adapters belong to the base model '{base['model']}' (quantization "
                f"{base['quantization']}), not to '{here.model}' (quantization {here.quantization}) as it is now: set "
                "policy.model and policy.quantization to what they were, or give the run's folder 'model' to PEFT"
            )
        self.phase = ours.get("phase", 0)
        self.weights_moved = True
        self.base_metrics = ours.get("base_metrics")
        self._fitted = ours.get("fitted", False)
        if self._trainer is not None:  # else it is `load_from_checkpoint`, which nothing goes on after
            self._restored = of_this_rank(ours.get("ranks", []), self.global_rank, self.trainer.world_size)
            self.load_rank_state(self._restored)

    def rank_state(self) -> dict[str, Any]:
        """What each rank must remember for itself, as plain data."""
        task = getattr(getattr(self.trainer, "datamodule", None), "task", None)
        return {"random": random_states(), "task": task.state_dict() if isinstance(task, Task) else {}}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Take up what `rank_state` returned; empty where a checkpoint knows nothing."""
        task = getattr(getattr(self.trainer, "datamodule", None), "task", None)
        if isinstance(task, Task) and state.get("task"):
            task.load_state_dict(state["task"])

    def on_train_start(self) -> None:
        """Put the random states back last, when nothing more is built."""
        if "random" in self._restored:
            restore_random_states(self._restored["random"])
        self._restored = {}
