"""Which model to train, and how to hold it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(kw_only=True, frozen=True)
class LoRA:
    """Low-rank adapters, through PEFT (arXiv 2106.09685).

    Attributes:
        rank: rank r of the update.
        alpha: its scale; the update is multiplied by alpha / rank (rsLoRA: alpha / sqrt(rank)).
        dropout: dropout on the adapter's input; 0 keeps sampled and trained log-probabilities the same.
        target_modules: "all-linear", or the names of the modules to adapt (such as [q_proj, v_proj]).
        dora: also learn the magnitude of each weight (DoRA, 2402.09353).
        rslora: rank-stabilised scale (2312.03732).
    """

    rank: int = 32
    alpha: int = 64
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    dora: bool = False
    rslora: bool = False


@dataclass(kw_only=True, frozen=True)
class PolicyOptions:
    """Which model to train, and how to hold it.

    Attributes:
        model: `nano` (the embedded model), a folder, or a Hugging Face hub id. A folder with an adapter is loaded with
            the adapter merged.
        revision: branch, tag or commit of a hub id.
        dtype: of the weights; `auto` takes the checkpoint's. Learning rates of 1e-6 vanish in bfloat16 weights: keep
            float32 and choose `--trainer.precision bf16-mixed` for speed.
        attention: attention implementation of transformers (sdpa, eager, flash_attention_2, ...); None is its choice.
        chat_template: a Jinja file, or `think` for the built-in think/answer template; None takes the tokenizer's own.
        lora: train adapters only.
        quantization: hold the linear layers' weights, which then only adapters can change (`lora`), in 4 bits (`nf4`,
            with double quantisation: QLoRA, 2305.14314) or 8 (`int8`: LLM.int8, 2208.07339). 4-bit weights multiply in
            bfloat16 on CUDA and in float32 on a CPU, or in `dtype` where that is narrower.
        gradient_checkpointing: recompute activations in the backward pass: less memory, more time.
        random_weights: keep architecture and tokenizer, but start from fresh random weights.
    """

    model: str = "nano"
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    attention: str | None = None
    chat_template: str | None = None
    lora: LoRA | None = None
    quantization: Literal["nf4", "int8"] | None = None
    gradient_checkpointing: bool = False
    random_weights: bool = False
