"""nano's tokenizer: a word its questions use is one token, any other text is spelled byte by byte.

It is a byte-level BPE without merges: a word of the vocabulary is taken whole, everything else stays letters. So digits
are single tokens, a word to be spelled backward arrives as letters, and no text at all is unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONTEXT = 1024
"""Tokens the model reads at most."""

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
END, PAD = "<|end|>", "<|pad|>"

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] | trim + eos_token -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] | trim + eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think> </think> ' -}}{%- endif -%}
{%- endif -%}
"""
"""Every turn is role, text, end. In no-think mode the assistant's turn starts with an empty think block."""


def build_tokenizer(texts: Iterable[str], least: int) -> PreTrainedTokenizerFast:
    """Build the tokenizer from sample texts.

    Args:
        texts: what the model will read and write, tags and roles left out.
        least: a word of several letters gets a token of its own when it occurs this often.

    Returns:
        A tokenizer with chat template, end and padding tokens set.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(text) if len(word) > 1)
    frequent = sorted(word for word, count in counts.items() if count >= least)
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *frequent]
    # ignore_merges: a word of the vocabulary is taken whole although no merges lead to it
    bpe = models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], ignore_merges=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (PAD, END, *ROLES)])
    # no special tokens: the tags are part of what the model says, and must survive decoding
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
