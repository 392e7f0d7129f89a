"""Tiny checkpoints are real ones."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_reason.tiny import tiny_policy
from lit_reason.types import UserError


def test_every_architecture_is_a_small_checkpoint_that_transformers_loads(tiny_folders: dict[str, Path]) -> None:
    for architecture, folder in tiny_folders.items():
        assert sum(file.stat().st_size for file in folder.iterdir()) < 1_000_000
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert model.config.model_type == architecture
        assert model.config.vocab_size == len(tokenizer) == 258
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_tokenizer_spells_any_text_in_bytes(tiny_llama: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    text = " <think> 1+1 \U0001f4a1 \x00\r\n é"
    assert len(tokenizer(text)["input_ids"]) == len(text.encode())
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    turns = [{"role": "user", "content": "hi"}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert rendered == "user: hi<|end|>\nassistant: "


def test_weights_follow_the_seed_and_leave_the_global_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a, b, c = (tiny_policy(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert torch.equal(torch.rand(1), expected)
    weights = [(Path(folder) / "model.safetensors").read_bytes() for folder in (a, b, c)]
    assert weights[0] == weights[1] != weights[2]


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="architecture must be one of llama, qwen3, gpt2, gemma2, got 'bert'"):
        tiny_policy(tmp_path, "bert")  # type: ignore[arg-type]  # the mistake under test
