"""What `check_loss` holds a loss against.

A loss answers a finite scalar with a gradient at the tokens that count and nowhere else; what stands behind the mask,
NaN included, makes no difference, nor does padding, nor rows that are masked altogether; the shares of micro-batches
add up to the window's loss, and so do the metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_reason.loss import Loss
from lit_reason.types import LossInputs, LossOutput, Window

MAX_COMPLETION_TOKENS = 16
PER_TOKEN = ("logprobs", "old_logprobs", "advantages", "entropies", "reference_logprobs")


def make_inputs(lengths: Sequence[int], *, padding: int, reference: bool, seed: int) -> LossInputs:
    """See `lit_reason.testing.loss_inputs`."""
    shape = (len(lengths), max(lengths) + padding)
    columns: dict[str, Tensor] = {name: torch.zeros(shape) for name in PER_TOKEN}
    mask = torch.zeros(shape, dtype=torch.bool)
    for row, length in enumerate(lengths):
        draw = torch.Generator().manual_seed(1_000 * seed + row)
        columns["logprobs"][row, :length] = -2.0 * torch.rand(length, generator=draw) - 0.1
        drift = 0.4 * torch.rand(2, length, generator=draw) - 0.2
        columns["old_logprobs"][row, :length] = columns["logprobs"][row, :length] + drift[0]
        columns["reference_logprobs"][row, :length] = columns["logprobs"][row, :length] + drift[1]
        columns["advantages"][row, :length] = (-1.0) ** row * (0.5 + torch.rand(1, generator=draw))
        columns["entropies"][row, :length] = 2.0 * torch.rand(length, generator=draw)
        mask[row, :length] = True
    window = Window(
        sequences=float(mask.any(1).sum()),
        tokens=float(mask.sum()),
        micro_batches=1.0,
        max_completion_tokens=MAX_COMPLETION_TOKENS,
    )
    reference_logprobs = columns.pop("reference_logprobs")
    columns["logprobs"].requires_grad_()
    return LossInputs(mask=mask, window=window, reference_logprobs=reference_logprobs if reference else None, **columns)


def complaints_about(loss: Loss, complain: Callable[[str], None]) -> None:
    """Report everything that is wrong with a loss, one line each."""
    original = make_inputs((5, 3, 4), padding=0, reference=loss.needs_reference, seed=0)
    inputs = _map(original, torch.clone)
    output = loss(inputs)
    if not _well_formed(output, complain):
        return  # nothing below can be asked of it
    gradient = _gradient(output, inputs)
    if not bool(gradient[inputs.mask].abs().sum() > 0):
        complain("no gradient reaches the log-probabilities of tokens that count")
    for name in (*PER_TOKEN, "mask"):
        before, after = getattr(original, name), getattr(inputs, name)
        if before is not None and not torch.equal(before, after):
            complain(f"changes its input '{name}' in place")
    variants = {
        "NaN behind the mask": _filled(original, float("nan")),
        "infinity behind the mask": _filled(original, float("-inf")),
        "three more columns of padding": _map(original, lambda t: pad(t, (0, 3))),
        "one more row, masked altogether": _map(original, lambda t: pad(t, (0, 0, 0, 1))),
        "a second call": _map(original, torch.clone),
    }
    for what, variant in variants.items():
        _compare(loss, variant, output, gradient[inputs.mask], partial(_about, what, complain))
    _shares_add_up(loss, original, output, complain)
    _nothing_counts(loss, _filled(replace(original, mask=torch.zeros_like(original.mask)), float("nan")), complain)


def _about(what: str, complain: Callable[[str], None], line: str) -> None:
    complain(f"{what}: {line}")


def _well_formed(output: object, complain: Callable[[str], None]) -> bool:
    if not isinstance(output, LossOutput):
        complain(f"answers {type(output).__name__}, expected lit_reason.types.LossOutput")
        return False
    if not isinstance(output.loss, Tensor) or output.loss.ndim != 0:
        complain("the loss is no scalar tensor")
        return False
    if not output.loss.requires_grad:
        complain("the loss carries no gradient")
        return False
    if not bool(output.loss.isfinite()):
        complain(f"the loss is {output.loss.item()}")
    for name, value in output.metrics.items():
        if not isinstance(value, Tensor) or value.ndim != 0 or value.requires_grad or not bool(value.isfinite()):
            complain(f"the metric '{name}' is no finite, detached scalar tensor")
            return False
    return True


def _compare(
    loss: Loss, variant: LossInputs, output: LossOutput, gradient: Tensor, complain: Callable[[str], None]
) -> None:
    """Loss, gradient and metrics of a variant must be those of the inputs it was made from."""
    other = loss(variant)
    if not _close(other.loss, output.loss):
        complain(f"the loss is {other.loss.item():.6g}, not {output.loss.item():.6g}")
    other_gradient = _gradient(other, variant)
    if bool((other_gradient[~variant.mask] != 0).any()):
        complain("a gradient reaches tokens that do not count")
    if not _close(other_gradient[variant.mask], gradient):  # row by row, so that only what counts is compared
        complain("the gradient differs")
    for name, value in output.metrics.items():
        if not _close(other.metrics[name], value):
            complain(f"the metric '{name}' differs")


def _shares_add_up(loss: Loss, original: LossInputs, output: LossOutput, complain: Callable[[str], None]) -> None:
    """Cut in two with the same window totals, loss and metrics are sums; a loss may declare that it is not."""
    shares = [loss(_map(original, itemgetter(rows))) for rows in (slice(0, 1), slice(1, None))]
    total = shares[0].loss + shares[1].loss
    if getattr(loss, "aggregation", None) != "micro_batch" and not _close(total, output.loss):
        complain(
            f"two micro-batches of one window sum to {total.item():.6g}, one gives {output.loss.item():.6g}: divide by "
            "the totals of `inputs.window`, never by those of the micro-batch"
        )
    for name, value in output.metrics.items():
        if not _close(shares[0].metrics[name] + shares[1].metrics[name], value):
            complain(f"the metric '{name}' is no sum over tokens: two micro-batches do not add up to one")


def _nothing_counts(loss: Loss, inputs: LossInputs, complain: Callable[[str], None]) -> None:
    """A rank without anything to learn still runs backward: a zero with a gradient of zeros."""
    output = loss(inputs)
    if output.loss.item() != 0.0 or not output.loss.requires_grad:
        complain(f"nothing counts: the loss is {output.loss.item()}, expected 0 that still runs backward")
    elif bool((_gradient(output, inputs) != 0).any()):
        complain("nothing counts: the gradient is not 0")


def _gradient(output: LossOutput, inputs: LossInputs) -> Tensor:
    (gradient,) = torch.autograd.grad(output.loss, inputs.logprobs, allow_unused=True)
    return torch.zeros_like(inputs.logprobs) if gradient is None else gradient


def _map(inputs: LossInputs, change: Callable[[Tensor], Tensor]) -> LossInputs:
    """New inputs, every tensor changed alike."""
    tensors = {name: getattr(inputs, name) for name in (*PER_TOKEN, "mask")}
    changed: dict[str, Any] = {name: None if t is None else change(t.detach()) for name, t in tensors.items()}
    result = replace(inputs, **changed)
    result.logprobs = result.logprobs.clone().requires_grad_()
    return result


def _filled(inputs: LossInputs, value: float) -> LossInputs:
    """The same where the mask is True, `value` elsewhere."""
    return _map(inputs, lambda t: t if t.dtype == torch.bool else torch.where(inputs.mask, t, value))


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-7)
