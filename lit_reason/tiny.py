"""Random models of a few thousand parameters, on disk as any Hugging Face checkpoint: what tests train on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lit_reason.types import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Architecture = Literal["llama", "qwen3", "gpt2", "gemma2"]

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)

CONTEXT = 2048
HIDDEN, LAYERS, HEADS = 32, 2, 4


def tiny_policy(folder: str | Path, architecture: Architecture = "llama", *, seed: int = 0) -> str:
    """Write a random checkpoint with tokenizer and chat template, under a megabyte; `policy.model` takes the folder.

    The tokenizer spells any text in bytes, one token each. The weights are random but not small, so that greedy
    choices are no ties that rounding decides.

    Args:
        folder: made when it does not exist.
        architecture: whose code runs.
        seed: of the weights; the global random state is left alone.

    Returns:
        The folder's path.

    Raises:
        UserError: the architecture is none of the four.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    if architecture not in get_args(Architecture):
        raise UserError(f"architecture must be one of {', '.join(get_args(Architecture))}, got '{architecture}'")
    tokenizer = _byte_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(_config(architecture, tokenizer))
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _config(architecture: Architecture, tokenizer: PreTrainedTokenizerFast) -> Any:  # noqa: ANN401 - untyped library
    from transformers import AutoConfig

    shared: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "initializer_range": 0.2,
    }
    if architecture == "gpt2":
        shape = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT}
        # sampling and training must see the same network
        return AutoConfig.for_model("gpt2", **shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **shared)
    return AutoConfig.for_model(
        architecture,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        head_dim=HIDDEN // HEADS,
        max_position_embeddings=CONTEXT,
        **shared,
    )


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that knows the 256 bytes, an end and a filler."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",  # noqa: S106 - a piece of text, no secret
        pad_token="<|pad|>",  # noqa: S106 - likewise
        model_max_length=CONTEXT,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
