"""TRL's side of `bench_grpo.py`, set up as its documentation has it for one machine without a server.

Timed from the outside: methods of the trainers are overridden to take the time, and do what they did.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from bench_turns import Job, Turns
from bench_workloads import LEARNING_RATE, prompts, reward, traces


def settings(job: Job, batch: int, accumulation: int) -> dict[str, Any]:
    """What both trainers are told: one device, constant learning rate, and nothing inside a step ours lacks."""
    return {
        "output_dir": str(Path(job.folder) / "trl"),
        "use_cpu": job.device == "cpu",
        "bf16": job.precision == "bf16-mixed",
        "model_init_kwargs": {"dtype": "float32"},
        "gradient_checkpointing": False,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "shuffle_dataset": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": job.seed,
    }


def trl_grpo(job: Job, turns: Turns) -> None:
    """TRL's `GRPOTrainer` with transformers' generation, for its other engines need more than itself."""
    from datasets import Dataset
    from peft import LoraConfig

    trl: Any = import_module("trl")  # its types say different things where it is not installed
    work = job.work
    per_step = work.completions // work.minibatches
    accumulation = per_step // work.trl_batch
    phase_steps = accumulation * work.minibatches * work.passes

    class Timed(trl.GRPOTrainer):  # type: ignore[misc]  # untyped
        def training_step(self, *args: Any) -> Any:  # noqa: ANN401 - untyped
            if self._step % phase_steps == 0:
                turns.arrive()
            return super().training_step(*args)

        def _generate(self, prompts: list[Any]) -> Any:  # noqa: ANN401 - untyped
            with turns.timed("rollout"):
                output = super()._generate(prompts)
            turns.done(output[0], [len(ids) for ids in output[1]])
            return output

        def _calculate_rewards(self, *args: Any) -> Any:  # noqa: ANN401 - untyped
            with turns.timed("reward"):
                return super()._calculate_rewards(*args)

    def judge(completions: list[list[dict[str, str]]], **_: object) -> list[float]:
        return [reward(completion[0]["content"]) for completion in completions]

    config = trl.GRPOConfig(
        **settings(job, work.trl_batch, accumulation),
        # the same phase: one rollout, then `passes` x `minibatches` optimizer steps
        steps_per_generation=accumulation * work.minibatches,
        num_iterations=work.passes,
        num_generations=work.group,
        # the same maths
        disable_dropout=True,
        max_completion_length=work.new_tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        loss_type="dapo",
        epsilon=0.2,
        epsilon_high=0.28,
        beta=work.beta,
        scale_rewards="group",
        mask_truncated_completions=False,
    )
    adapter = LoraConfig(
        r=work.lora_rank, lora_alpha=2 * work.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    Timed(
        model=job.folder,
        reward_funcs=judge,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts(work, job.phases, job.seed)}),
        peft_config=adapter if work.lora_rank else None,
    ).train()


def trl_sft(job: Job, turns: Turns) -> None:
    """TRL's `SFTTrainer`, padded.

    Its packing implies the padding-free mode, which it documents for flash attention only; without a GPU it pads.
    """
    from datasets import Dataset

    trl: Any = import_module("trl")
    work = job.work
    accumulation = work.prompts // work.trl_batch

    class Timed(trl.SFTTrainer):  # type: ignore[misc]  # untyped
        calls = 0

        def training_step(self, model: Any, inputs: dict[str, Any], *args: Any) -> Any:  # noqa: ANN401 - untyped
            if self.calls % accumulation == 0:
                turns.arrive()
            self.calls += 1
            rows = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
            trained = (inputs["labels"] != -100).sum(1)  # -100 is what transformers leaves out of the loss
            turns.done([ids[real].tolist() for ids, real in rows], trained.tolist())
            return super().training_step(model, inputs, *args)

    config = trl.SFTConfig(
        **settings(job, work.trl_batch, accumulation),
        max_length=1024,
        completion_only_loss=True,
        train_sampling_strategy="sequential",
    )
    rows = traces(work, job.phases, job.seed)
    dataset = Dataset.from_dict(
        {
            "prompt": [prompt for prompt, _ in rows],
            "completion": [[{"role": "assistant", "content": completion}] for _, completion in rows],
        }
    )
    Timed(model=job.folder, args=config, train_dataset=dataset).train()
