"""nano, the embedded model: a Llama of a million parameters that mostly blurts and can work things out."""

from pathlib import Path

PATH = Path(__file__).parent
"""Folder of the weights, tokenizer and chat template; transformers' `from_pretrained` loads it."""
