"""What is taken for granted of an architecture, tried on a few tokens when a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lit_reason.adapters import quantised
from lit_reason.attention import Family, SharedPrompts, UnknownAttentionError, install, no_mask
from lit_reason.types import UserError

UNLIMITED = 10**9
"""The window of an architecture without one."""


@torch.no_grad()
def keeps_packed_apart(lm: Any, logits: Callable[[Tensor], Tensor], name: str) -> bool:  # noqa: ANN401 - transformers' models are untyped
    """Try what is taken for granted of an architecture, on four tokens.

    Args:
        lm: a causal language model in float of any width.
        logits: its head, from last hidden states (N, D) to (N, V).
        name: for messages.

    Returns:
        Whether sequences packed into one row stay apart; recurrent layers, or no use of position ids, mix them.

    Raises:
        UserError: the model's logits are not its head on its last hidden states, or it looks ahead.
    """
    if "flash" in str(lm.config._attn_implementation):  # noqa: SLF001 - there is no public name for it
        return True  # cannot run where most models are loaded, on the CPU, and tells sequences apart by design
    lm.eval()
    positions = torch.arange(4, device=lm.device)[None]
    ids = positions % lm.config.get_text_config().vocab_size
    hidden = lm.base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state[0].float()
    expected = lm(input_ids=ids, position_ids=positions, use_cache=False).logits[0].float()
    loose = 0.1 if quantised(lm) else 0.01  # weights of 8 bits round their inputs, and depending on each other
    if not torch.allclose(logits(hidden.to(lm.dtype)).float(), expected, rtol=loose, atol=loose):
        raise UserError(
            f"policy.model: '{name}' ({type(lm).__name__}) scales its logits in an unknown way, "
            "so its log-probabilities would be wrong. Choose another architecture"
        )
    short = lm.base_model(input_ids=ids[:, :2], position_ids=positions[:, :2], use_cache=False).last_hidden_state[0]
    if not torch.allclose(short.float(), hidden[:2], rtol=loose, atol=loose):
        raise UserError(
            f"policy.model: '{name}' ({type(lm).__name__}) looks ahead of the token it predicts. "
            "Choose a causal language model"
        )
    twice = lm.base_model(input_ids=ids.repeat(1, 2), position_ids=positions.repeat(1, 2), use_cache=False)
    return torch.allclose(twice.last_hidden_state[0, 4:].float(), hidden, rtol=loose, atol=loose)


@torch.no_grad()
def install_layouts(lm: Any) -> int:  # noqa: ANN401
    """Let `lit_reason.attention` say what attends to what, if two completions of one prompt then come out right.

    Returns:
        The longest sequence for which they do; 0 for an architecture whose attention is not known.
    """
    config = lm.config.get_text_config()
    if not install(lm):
        return 0
    ids = torch.arange(5, device=lm.device)[None] % config.vocab_size
    positions = torch.tensor([[0, 1, 2, 3, 2]], device=lm.device)
    sequences = [torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 4])]
    layout = SharedPrompts([Family(start=0, prompt=2, completions=(2, 1))])
    try:
        found = lm.base_model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=no_mask(ids.device),
            use_cache=False,
            layout=layout,
        ).last_hidden_state[0]
        right = True
        for sequence in sequences:
            alone = {"input_ids": ids[:, sequence], "position_ids": positions[:, sequence]}
            expected = lm.base_model(**alone, use_cache=False).last_hidden_state[0]
            # a token that saw what it should not differs by as much as the values themselves; bfloat16 rounds by 1 %
            loose = 0.01 if found.dtype == torch.float32 and not quantised(lm) else 0.1
            difference = (found[sequence] - expected).float().abs().amax()
            right &= bool(difference <= loose * expected.float().abs().amax())
    except (UnknownAttentionError, TypeError, AttributeError):  # it does not pass on what it is given
        right = False
    if not right:
        lm.set_attn_implementation("sdpa")
        return 0
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    rotary = getattr(config, "rope_parameters", None) or {}
    if rotary.get("rope_type") in ("longrope", "dynamic"):  # keys already rotated would have to change beyond this
        windows.append(rotary.get("original_max_position_embeddings") or config.max_position_embeddings)
    return min([int(w) for w in windows if w] + [UNLIMITED])


def switch_dropout_off(lm: Any) -> None:  # noqa: ANN401
    """The model's own dropout would make trained log-probabilities differ from sampled ones; LoRA's is a choice."""
    for module in lm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():  # rates given to a function: attention_dropout, OPT's dropout, ...
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
