"""Finding a model, its tokenizer and its chat template, with one clear line when something is missing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from lit_reason import nano
from lit_reason.types import UserError

T = TypeVar("T")

THINK_TEMPLATE = """\
{%- set thinks = enable_thinking is not defined or enable_thinking -%}
{%- for message in messages -%}
{{- message['role'] + ': ' -}}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ message['content'] | trim + eos_token }}{% endgeneration %}{{ '\\n' }}
{%- else -%}
{{- message['content'] | trim + '\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- 'assistant: ' -}}
{%- if not thinks -%}{{- '<think> </think> ' -}}{%- endif -%}
{%- endif -%}
"""
"""The built-in chat template, for tokenizers that have none; plain words, so that any vocabulary can spell it."""


def resolve(model: str) -> str:
    """The folder or hub id behind `policy.model`; a thing that is neither is refused before anything is imported."""
    if model == "nano":
        return str(nano.PATH)
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise UserError(
                f"policy.model: the folder '{model}' is no model: it holds no config.json (nor adapter_config.json). "
                "Give a folder written by save_pretrained, a hub id, or 'nano'"
            )
        return str(folder)
    looks_local = model.startswith((".", "/", "~")) or model.count("/") != 1 or folder.exists()
    if looks_local:
        raise UserError(
            f"policy.model: there is no folder '{model}'. Give an existing folder, a hub id (owner/name), or 'nano'"
        )
    return model


def load_tokenizer(model: str, revision: str | None = None) -> Any:  # noqa: ANN401 - transformers is untyped
    """The tokenizer beside a model."""
    from transformers import AutoTokenizer

    where = resolve(model)
    return _attempt("tokenizer", model, lambda: AutoTokenizer.from_pretrained(where, revision=revision))


def load_chat_template(tokenizer: Any, chat_template: str | None, model: str) -> None:  # noqa: ANN401
    """Set the chat template: a file, the built-in `think`, or the tokenizer's own.

    Raises:
        UserError: there is none, the file is missing, or it is not valid Jinja.
    """
    if chat_template == "think":
        tokenizer.chat_template = THINK_TEMPLATE
    elif chat_template is not None:
        file = Path(chat_template).expanduser()
        if not file.is_file():
            raise UserError(f"policy.chat_template: there is no file '{chat_template}'. Give a Jinja file, or 'think'")
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise UserError(
            f"policy.chat_template: the tokenizer of '{model}' has no chat template and none is given. "
            "Set it to a Jinja file, or to 'think' for the built-in think/answer template"
        )
    from jinja2 import TemplateError

    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "Q"}], tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        source = chat_template or f"the tokenizer of '{model}'"
        number = getattr(error, "lineno", None)  # syntax errors know it
        line = f", line {number}" if number else ""
        raise UserError(f"policy.chat_template: {source}{line}: {error}") from error


def load_model(model: str, *, revision: str | None, dtype: str, attention: str | None, random_weights: bool) -> Any:  # noqa: ANN401
    """The causal LM itself, adapters merged, on the CPU, in `dtype`."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    where = resolve(model)
    if (Path(where) / "adapter_config.json").is_file():
        return _attempt("adapter", model, lambda: _load_merged(where, dtype, attention))
    options: dict[str, Any] = {} if dtype == "auto" else {"dtype": getattr(torch, dtype)}  # transformers' own default
    if attention is not None:
        options["attn_implementation"] = attention
    if not random_weights:
        load: Callable[..., Any] = partial(
            AutoModelForCausalLM.from_pretrained, where, revision=revision, output_loading_info=True
        )
        lm, found = _attempt("model", model, lambda: load(**options))
        missing = sorted(found["missing_keys"])
        if missing:
            lacks = f"{len(missing)} weights are missing, such as {missing[0]}"
            raise UserError(f"policy.model: the weights of '{model}' do not fit its config.json: {lacks}")
        return lm
    config = _attempt("model", model, lambda: AutoConfig.from_pretrained(where, revision=revision))
    fresh = _attempt("model", model, lambda: AutoModelForCausalLM.from_config(config, **options))
    with suppress(OSError):  # not every checkpoint has one; then the model's own default stays
        fresh.generation_config = GenerationConfig.from_pretrained(where, revision=revision or "main")
    return fresh


def _load_merged(folder: str, dtype: str, attention: str | None) -> Any:  # noqa: ANN401
    from peft import PeftConfig, PeftModel

    base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    lm = load_model(str(base), revision=None, dtype=dtype, attention=attention, random_weights=False)
    return PeftModel.from_pretrained(lm, folder).merge_and_unload()


def _attempt(what: str, model: str, load: Callable[[], T]) -> T:
    """Run a transformers loader; whatever it raises on a bad folder becomes one line that names the model."""
    try:
        return load()
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
        cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"policy.model: the {what} of '{model}' could not be loaded: {cause}") from error
    except Exception as error:  # whatever a damaged file makes of safetensors, pickle or a validator
        raise UserError(f"policy.model: the {what} of '{model}' is damaged: {error}") from error
