"""Finding a model, its tokenizer and its chat template, with one clear line when something is missing."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from lit_reason import nano
from lit_reason.policy_options import LoRA
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


def check_quantization(quantization: str | None, lora: LoRA | None) -> None:
    """Refuse quantised weights that nothing could train, or nothing compute.

    Raises:
        UserError: there are no adapters or none that fit, or no bitsandbytes.
    """
    if quantization is None:
        return
    if lora is None:
        raise UserError(
            f"policy.quantization: {quantization} weights cannot be trained, only adapters beside them: set "
            "policy.lora (such as {rank: 32, alpha: 64}), or leave quantization out"
        )
    if quantization == "int8" and lora.dora:  # PEFT loses the weights' scale when it measures their length
        raise UserError("policy.lora.dora: does not work with int8 weights: set it to false, or quantization to nf4")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"policy.quantization: {quantization} needs the package 'bitsandbytes': "
            "pip install 'lit-reason[quantization]', or leave quantization out"
        )


def load_model(
    model: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    attention: str | None = None,
    random_weights: bool = False,
    quantization: str | None = None,
    device: torch.device | None = None,
) -> Any:  # noqa: ANN401 - transformers is untyped
    """The causal LM itself, adapters merged, in `dtype`; on the CPU, but for quantised weights, made on `device`."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    where = resolve(model)
    if (Path(where) / "adapter_config.json").is_file():
        if quantization is not None:
            raise UserError(
                f"policy.quantization: '{model}' is an adapter, which would have to be merged into quantised weights. "
                "Export it merged first, or leave quantization out"
            )
        return _attempt("adapter", model, lambda: _load_merged(where, dtype, attention))
    options: dict[str, Any] = {} if dtype == "auto" else {"dtype": getattr(torch, dtype)}  # transformers' own default
    if attention is not None:
        options["attn_implementation"] = attention
    if quantization is not None:
        if random_weights:
            raise UserError("policy.quantization: random_weights are not to be frozen: leave one of the two out")
        options |= _quantization(quantization, dtype, device or torch.device("cpu"))
    if not random_weights:
        return _load_whole(model, partial(AutoModelForCausalLM.from_pretrained, where, revision=revision, **options))
    config = _attempt("model", model, lambda: AutoConfig.from_pretrained(where, revision=revision))
    fresh = _attempt("model", model, lambda: AutoModelForCausalLM.from_config(config, **options))
    with suppress(OSError):  # not every checkpoint has one; then the model's own default stays
        fresh.generation_config = GenerationConfig.from_pretrained(where, revision=revision or "main")
    return fresh


def _load_whole(model: str, load: Callable[..., Any]) -> Any:  # noqa: ANN401
    lm, found = _attempt("model", model, lambda: load(output_loading_info=True))
    missing = sorted(found["missing_keys"])
    if missing:
        lacks = f"{len(missing)} weights are missing, such as {missing[0]}"
        raise UserError(f"policy.model: the weights of '{model}' do not fit its config.json: {lacks}")
    for module in lm.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # such CPUs would repack weights of 4 bits for evaluation,
            module.support_avx512bf16_for_cpu = False  # and answer otherwise than in training
    if getattr(lm, "is_quantized", False):
        for parameter in lm.parameters():
            if type(parameter) is nn.Parameter and parameter.device.type == "cpu":
                parameter.data = (
                    parameter.data.clone()
                )  # else all of the file stays mapped for the few left as they were
    return lm


def _quantization(kind: str, dtype: str, device: torch.device) -> dict[str, Any]:
    """How `from_pretrained` quantises, and where."""
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        # of the types of its inputs, at every product
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": {"": device}}
    compute = torch.bfloat16 if device.type == "cuda" else torch.float32
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype) if dtype in ("bfloat16", "float16") else compute,
        bnb_4bit_quant_storage=torch.uint8,  # in which alone FSDP2 is known to shard them right
    )
    return {"quantization_config": nf4, "device_map": {"": device}}


def _load_merged(folder: str, dtype: str, attention: str | None) -> Any:  # noqa: ANN401
    from peft import PeftConfig, PeftModel

    base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    lm = load_model(str(base), dtype=dtype, attention=attention)
    return PeftModel.from_pretrained(lm, folder).merge_and_unload()


@torch.no_grad()
def identity(lm: Any, model: str) -> dict[str, str]:  # noqa: ANN401 - a transformers model
    """What tells base models apart: `fingerprint`, and for quantised ones in a folder `files`, what was quantised."""
    found = {"fingerprint": fingerprint(lm)}
    files = sorted(Path(resolve(model)).glob("*.safetensors")) if getattr(lm, "is_quantized", False) else []
    return found | {"files": _fingerprint_of_files(files)} if files else found


def same_base(saved: Mapping[str, str], now: Mapping[str, str] | None) -> bool:
    """Whether two identities are of one model, as far as both know."""
    known = {"fingerprint"} | ({"files"} & saved.keys() & (now or {}).keys())
    return now is not None and all(saved[name] == now[name] for name in known)


def fingerprint(lm: Any) -> str:  # noqa: ANN401
    """A hash of the names and shapes of all weights, and of 64 numbers of each.

    Read as bfloat16, so that it does not depend on `dtype`; quantised weights, which devices round differently, count
    by name alone.
    """
    digest = hashlib.sha256(str(lm.config.model_type).encode())
    for name, weight in lm.named_parameters():
        digest.update(name.encode())
        if weight.is_floating_point():
            numbers = weight.flatten()[:: max(1, weight.numel() // 64)][:64].to("cpu", torch.bfloat16)
            digest.update(str(tuple(weight.shape)).encode() + numbers.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _fingerprint_of_files(files: Sequence[Path]) -> str:
    """The same of weights in files; the numbers are those at the beginning of two rows."""
    from safetensors import safe_open

    digests = []
    for file in files:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - it is no mapping
                weight = weights.get_slice(name)
                shape = weight.get_shape()
                places = sorted({0, shape[0] // 2}) if shape and shape[0] else []
                rows = [weight[row : row + 1].flatten()[:32] for row in places]
                numbers = b"".join(row.to(torch.bfloat16).view(torch.int16).numpy().tobytes() for row in rows)
                digests.append(hashlib.sha256(f"{name}{shape}".encode() + numbers).hexdigest())
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()  # however they are spread over files


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
