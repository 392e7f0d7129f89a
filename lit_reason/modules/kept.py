"""What a checkpoint keeps of a module, and what it is checked for before a run goes on from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule

from lit_reason.policy import Policy, PolicyOptions
from lit_reason.sharding import plain_name
from lit_reason.types import UserError


class Kept(LightningModule):
    """The half of a `Reasoner` that goes into checkpoints and comes out of them."""

    policy: Policy
    policy_options: PolicyOptions
    phase: int
    weights_moved: bool
    base_metrics: dict[str, float] | None

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
        checkpoint["lit_reason"] = {
            "module": type(self).__name__,
            "phase": self.phase,
            "base_metrics": self.base_metrics,
        }
        if self.policy.base is not None:
            options = self.policy_options
            base = {"model": options.model, "quantization": options.quantization, "fingerprint": self.policy.base}
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
        if base is not None and "policy" in self._modules and base["fingerprint"] != self.policy.base:
            here = self.policy_options
            raise UserError(
                f"ckpt_path: its adapters belong to the base model '{base['model']}' (quantization "
                f"{base['quantization']}), not to '{here.model}' (quantization {here.quantization}) as it is now: set "
                "policy.model and policy.quantization to what they were, or give the run's folder 'model' to PEFT"
            )
        self.phase = ours.get("phase", 0)
        self.weights_moved = True
        self.base_metrics = ours.get("base_metrics")
