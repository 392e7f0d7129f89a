"""Three training steps of a module under a strategy, as figures to compare."""

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_reason import GRPO, SFT, LoRA, PolicyOptions, ReasoningData, RejectionSampling, Rollout, Sampling
from lit_reason.checkpoint_callback import CheckpointOptions, RunCheckpoints
from lit_reason.modules.base import Reasoner
from lit_reason.sharding import whole_tensor
from lit_reason.strategy import FSDP2
from lit_reason.types import UserError

STEPS = 3


def letters(rollout: Rollout) -> float:
    return sum(map(ord, rollout.text)) % 7 / 7


def long_enough(rollout: Rollout) -> float:
    return float(rollout.length > 2)


class Watch(Callback):
    """Losses and gradient norms of each step, and which parameters have moved."""

    def __init__(self) -> None:
        self.steps: list[list[float]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.before = _parameters(pl_module)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.steps.append([float(trainer.callback_metrics[f"train/{n}"]) for n in ("loss", "grad_norm", "entropy")])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        after = _parameters(pl_module)
        trains = {name for name, p in pl_module.named_parameters() if p.requires_grad}
        moved = {name for name, value in after.items() if not torch.equal(value, self.before[name])}
        # a parameter without a gradient of its own stays: keys have no bias that softmax would notice, and the like
        self.figures = {
            "steps": self.steps,
            "moved": len(moved),
            "trains": len(trains),
            "strayed": sorted(moved - trains),
            "stuck": sorted(trains - moved),
        }


def _parameters(module: LightningModule) -> dict[str, Tensor]:
    return {name: whole_tensor(p.detach()).cpu().clone() for name, p in module.named_parameters()}


def build(kind: str, model: str, **policy: Any) -> Reasoner:
    """A module of a kind; `beta` among the policy's options makes GRPO ask for a reference."""
    beta = policy.pop("beta", 0.0)
    shared: dict[str, Any] = {
        "policy": PolicyOptions(model=model, **policy),
        # a random model hardly ever ends by itself
        "sampling": Sampling(max_new_tokens=12, stop=tuple("abcdefghijklmnopqrstuvwxyz")),
        "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2),
        "tokens_per_microbatch": 128,
    }
    if kind == "SFT":
        return SFT(**shared)
    if kind == "GRPO":
        twice = {"passes": 2} if beta else {}
        return GRPO([letters], loss={"dapo": {"beta": beta}} if beta else "dapo", group_size=4, **twice, **shared)
    return RejectionSampling(
        [long_enough], group_size=4, threshold=0.5, select="first", keep=2, minibatches=1, **shared
    )


class FullDisk(Callback):
    """At the end of a fit, tries to save a checkpoint where there is no room for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.error = ""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # more than this, and writing fails
        try:
            trainer.save_checkpoint(self.folder / "full.ckpt", weights_only=False)
        except UserError as error:
            self.error = str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def fit_shards(kind: str, model: str, folder: Path) -> dict[str, Any]:
    """How a run went, how it goes on from its second step's shards, and what a full disk did; and files it leaves."""

    def run(*callbacks: Callback, shards: bool = True, ckpt_path: Path | None = None) -> dict[str, Any]:
        strategy = {"strategy": FSDP2(save_distributed_checkpoint=shards), "devices": 2}
        return fit(kind, model, folder, strategy, callbacks=callbacks, ckpt_path=ckpt_path)

    disk = FullDisk(folder / "shards")
    options = CheckpointOptions(every_n_steps=1, keep_last=STEPS)
    whole = run(RunCheckpoints(disk.folder, options), disk)
    names = sorted(entry.name for entry in disk.folder.iterdir())
    resumed = run(ckpt_path=disk.folder / "step-2.ckpt")
    run(RunCheckpoints(folder / "files", options), shards=False)
    files = str(folder / "files" / "step-2.ckpt")
    return {"whole": whole, "resumed": resumed, "error": disk.error, "names": names, "file": files}


def fit(
    kind: str,
    model: str,
    folder: Path,
    trainer: dict[str, Any],
    *,
    callbacks: Sequence[Callback] = (),
    ckpt_path: Path | None = None,
    **policy: Any,
) -> dict[str, Any]:
    """Train, and say how it went."""
    watch = Watch()
    options = {"logger": False, "enable_checkpointing": bool(callbacks), "enable_progress_bar": False}
    fitting = Trainer(
        max_steps=-1,
        max_epochs=1,
        limit_train_batches=STEPS,
        accelerator="cpu",
        callbacks=[watch, *callbacks],
        enable_model_summary=False,
        num_sanity_val_steps=1,
        default_root_dir=folder,
        **options,
        **trainer,
    )
    data = ReasoningData(
        {"nano_traces": {"size": 40}}, prompts_per_step=5, validation_problems=3, validation_batch=2, seed=1
    )
    fitting.fit(build(kind, model, **policy), data, ckpt_path=ckpt_path)
    return watch.figures


def fit_all(model: str, folder: Path, cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """All of some cases, on one of two ranks."""
    found = {}
    for name, case in cases.items():
        options = dict(case)
        kind = options.pop("kind")
        if options.pop("shards", False):
            found[name] = fit_shards(kind, model, folder)
            continue
        if "lora" in options:
            options["lora"] = LoRA(**options["lora"])
        found[name] = fit(kind, model, folder, {"devices": 2, **options.pop("trainer")}, **options)
    return found
