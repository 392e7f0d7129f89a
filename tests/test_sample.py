"""Drawing tokens: the counter-based stream, what is dropped, and the log-probability that is recorded."""

import pytest
import torch
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from lit_reason.rollout import Sampling, mix
from lit_reason.sample import _drop, draw, uniforms

LOGITS = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 3


def test_the_stream_is_splitmix64() -> None:
    """First outputs for seed 1234567, as published with the algorithm."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    found = uniforms(torch.tensor([1234567]), 3)[0].tolist()
    assert found == [(value >> 11) * 2.0**-53 for value in expected]


def test_streams_are_uniform_and_do_not_resemble_each_other() -> None:
    numbers = uniforms(torch.tensor([mix(0, 0, p, s) for p in range(20) for s in range(10)]), 500)
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    assert abs(float(numbers.mean()) - 0.5) < 0.005
    assert float(torch.corrcoef(numbers[:50]).fill_diagonal_(0).abs().max()) < 0.2


@pytest.mark.parametrize(
    ("options", "warper"),
    [
        ({"top_k": 7}, TopKLogitsWarper(7)),
        ({"top_p": 0.6}, TopPLogitsWarper(0.6)),
        ({"top_p": 0.01}, TopPLogitsWarper(0.01)),
        ({"min_p": 0.05}, MinPLogitsWarper(0.05)),
    ],
)
def test_the_same_tokens_are_dropped_as_by_transformers(options: dict[str, float], warper: object) -> None:
    expected = warper(torch.zeros(5, 1, dtype=torch.int64), LOGITS.clone())  # type: ignore[operator]
    assert torch.equal(_drop(LOGITS, Sampling(**options)).isneginf(), expected.isneginf())


def test_tokens_are_drawn_as_often_as_their_probability() -> None:
    count = 20000
    logits = LOGITS[:1].expand(count, -1)
    tokens, _ = draw(logits, uniforms(torch.tensor([9]), count)[0], Sampling(temperature=2.0))
    found = torch.bincount(tokens, minlength=40) / count
    torch.testing.assert_close(found, (LOGITS[0] / 2).softmax(-1), atol=0.01, rtol=0)


@pytest.mark.parametrize("options", [{}, {"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.1}])
def test_the_recorded_logprob_is_that_before_anything_was_dropped(options: dict[str, float]) -> None:
    tokens, logprobs = draw(LOGITS, torch.rand(5, dtype=torch.float64), Sampling(temperature=0.5, **options))
    expected = (LOGITS / 0.5).log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
    torch.testing.assert_close(logprobs, expected)


def test_greedy_takes_the_most_probable_and_says_its_plain_logprob() -> None:
    tokens, logprobs = draw(LOGITS, torch.zeros(5, dtype=torch.float64), Sampling(temperature=0.0))
    assert torch.equal(tokens, LOGITS.argmax(-1))
    torch.testing.assert_close(logprobs, LOGITS.log_softmax(-1).amax(-1))


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    present = torch.tensor([[3, 7, 7]] * 5)
    penalised = RepetitionPenaltyLogitsProcessor(1.5)(present, LOGITS.clone())
    seen = torch.zeros(5, 40, dtype=torch.bool).scatter_(1, present, True)
    tokens, _ = draw(LOGITS, torch.zeros(5).double(), Sampling(temperature=0.0, repetition_penalty=1.5), seen)
    assert torch.equal(tokens, penalised.argmax(-1))


@pytest.mark.parametrize("edge", [0.0, 1 - 2.0**-53])
def test_the_edges_of_the_unit_interval_draw_tokens_that_were_not_dropped(edge: float) -> None:
    sampling = Sampling(top_k=2)
    tokens, logprobs = draw(LOGITS, torch.full((5,), edge, dtype=torch.float64), sampling)
    kept = ~_drop(LOGITS, sampling).isneginf()
    assert kept.gather(1, tokens[:, None]).all()
    assert logprobs.isfinite().all()
