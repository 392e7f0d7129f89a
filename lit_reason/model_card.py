"""The README.md of an exported folder: how to load it, what it scores, and the recipe that made it."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache

from lit_reason.console import percent
from lit_reason.run_log import FILENAME, read_metrics

if TYPE_CHECKING:
    from lit_reason.trained import Trained

LIBRARIES = ("lit-reason", "torch", "lightning", "transformers", "peft")
SECRET = re.compile(
    r"(?i:(?:api|access|secret|private|auth|account|service|signing|encryption)[-_. ]?keys?$"
    r"|secret|passw|pass_?phrase|(?<![a-z])pwd$|authorization|credential|bearer|(?<![a-z])auth$|cookie"
    r"|(?<![a-z])(?:api[-_. ]?)?token$|(?:access|auth|hub|refresh|bearer|id)[-_. ]?tokens?$)"
    r"|[a-z]Token$"
)
"""Names of options that hold secrets; not `tokens`, nor `api_key_env`, which names a variable."""
LOGIN = re.compile(r"(?<=://)[^\s\"'?#]*@")
QUERY = re.compile(r"(?<=[?&#])[^=&\s]+=[^&\s\"']+")
PAIR = re.compile(r"(?<![\w-])-*([\w.-]+)\s*[=:]\s*([^\s;,&\"']+)")
KEYS = re.compile(
    r"\b(?:sk|pk|rk|hf|ghp|gho|ghs|github_pat|xox[abp]|glpat|AKIA)[-_]?[A-Za-z0-9_-]{16,}|(?i:\bbearer )\S+"
)

LOADING = {
    "adapter": """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{where}")
tokenizer = AutoTokenizer.from_pretrained("{where}")
""",
    "model": """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{where}")
tokenizer = AutoTokenizer.from_pretrained("{where}")
""",
}
QUANTISED = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, BitsAndBytesConfig

base = BitsAndBytesConfig({options})
model = AutoPeftModelForCausalLM.from_pretrained("{{where}}", quantization_config=base)
tokenizer = AutoTokenizer.from_pretrained("{{where}}")
"""
BITS = {
    "nf4": 'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True',
    "int8": "load_in_8bit=True",
}
ASKING = """\
messages = {messages}
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**prompt, max_new_tokens={tokens})[0]))
"""


def write_card(folder: Path, *, kind: str, trained: Trained, base: str, run: Path, title: str, where: str) -> None:
    """Write the card of an export.

    Args:
        folder: where README.md, and the curve where the run has one, go.
        kind: hf, adapter or merged.
        trained: what is exported.
        base: hub id or folder of the model that was trained.
        run: the run directory; may lack any of its files.
        title: the model's name, a hub id where it is pushed.
        where: what plain libraries load it from.
    """
    local = Path(base).is_dir()
    name = trained.policy.options.model if not local or trained.policy.options.model == "nano" else Path(base).name
    recipe = _recipe(run, trained)
    scores = _scores(read_metrics(run / FILENAME), trained.step)
    quantization = trained.policy.options.quantization if kind == "adapter" else None
    loading = LOADING["adapter" if kind == "adapter" else "model"]
    if quantization is not None:
        loading = QUANTISED.format(options=BITS[quantization])
    tokens = trained.config.get("sampling", {}).get("max_new_tokens", 256)
    data = ModelCardData(
        model_name=title,
        base_model=None if local else base,
        library_name="peft" if kind == "adapter" else "transformers",
        pipeline_tag="text-generation",
        license=base_licence(base),
        tags=["lit-reason", "reasoning", trained.module.lower()],
        eval_results=_results(scores, recipe) or None,
    )
    method = {"hf": "all weights trained", "adapter": "LoRA adapter", "merged": "LoRA adapter merged into the base"}
    parts = [
        f"# {title}",
        f"{name} trained with lit-reason ({trained.module}), step {trained.step}; {method[kind]}.",
        "## Use",
        fenced((loading + ASKING).format(where=where, tokens=tokens, messages=_example(run)), "python"),
    ]
    if kind == "adapter" and local:
        parts.append(
            "The base model is a folder of the machine that exported this; `adapter_config.json` names it. Without it, "
            "export with `--to merged`."
        )
    if quantization is not None:
        parts.append(
            f"The adapter was trained on the base in {quantization}, as it is loaded here: on the base as it is, its "
            "answers differ a little."
        )
    if scores:
        parts += ["## Scores", _table(scores)]
    curve = run / "curve.png"
    if curve.is_file():
        shutil.copyfile(curve, folder / curve.name)
        parts += ["## Training", f"![reward, accuracy and length by step]({curve.name})"]
    parts += ["## Recipe", fenced(yaml.safe_dump(presentable(recipe), sort_keys=False), "yaml")]
    parts += ["## Versions", versions(LIBRARIES)]
    write(folder, data, parts)


def write(folder: Path, data: ModelCardData, parts: list[str]) -> None:
    """Write README.md from its metadata and its paragraphs."""
    text = "\n\n".join(part.strip() for part in parts)
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n").save(folder / "README.md")


def versions(libraries: tuple[str, ...]) -> str:
    """The installed versions of libraries, a line."""
    return ", ".join(f"{name} {version(name)}" for name in libraries)


def fenced(text: str, language: str) -> str:
    """A code block; what it holds cannot end it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.strip()}\n{fence}"


def base_licence(base: str) -> str | None:
    """The licence a base model's own card names, where the card is at hand; nothing is downloaded."""
    card: Any = Path(base) / "README.md" if Path(base).is_dir() else try_to_load_from_cache(base, "README.md")
    if not isinstance(card, str | Path) or not Path(card).is_file():
        return None
    try:
        licence = ModelCard.load(card).data.license
    except (ValueError, yaml.YAMLError):  # somebody else's card
        return None
    return licence if isinstance(licence, str) else None


def presentable(value: Any) -> Any:  # noqa: ANN401 - whatever YAML holds
    """A recipe fit for others' eyes: no secrets, no unset options, of local paths the last part only."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if v is not None}
        return {k: "***" if SECRET.search(str(k)) else presentable(v) for k, v in kept.items()}
    if isinstance(value, list | tuple):
        return [presentable(item) for item in value]
    if isinstance(value, str):
        local = value.startswith(("/", "~")) and "\n" not in value
        return Path(value).name if local else _without_secrets(value)
    return value


def _without_secrets(text: str) -> str:
    """A text without logins and queries of addresses, `name=value` of secrets, and what looks like a key."""
    if "://" in text:
        text = QUERY.sub("***", LOGIN.sub("", text))
    text = PAIR.sub(lambda m: m[0][: m.start(2) - m.start()] + "***" if SECRET.search(m[1]) else m[0], text)
    return KEYS.sub("***", text)


def _example(run: Path) -> str:
    """A question of the kind that was trained on, as messages in Python."""
    text = "12 + 34 ="
    with suppress(OSError, ValueError, KeyError, TypeError), (run / "samples.jsonl").open(encoding="utf-8") as file:
        text = _without_secrets(str(json.loads(file.readline())["prompt"]))
    parts = re.fullmatch(r"(?:system: (.*?)\n)?user: (.*)", text, re.DOTALL)  # as samples show several messages
    system, user = (parts[1], parts[2]) if parts else (None, text)
    messages = [{"role": role, "content": said} for role, said in (("system", system), ("user", user)) if said]
    return json.dumps(messages, ensure_ascii=False)


def _recipe(run: Path, trained: Trained) -> dict[str, Any]:
    file = run / "config.yaml"
    if file.is_file():
        with suppress(OSError, ValueError, yaml.YAMLError):  # then what the checkpoint says
            found = yaml.safe_load(file.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return found
    return {"model": {"class_path": trained.module, "init_args": trained.config}}


def _scores(rows: dict[int, dict[str, float]], step: int) -> list[tuple[int, dict[str, float]]]:
    """(step, metrics) of the first validation and of the last one that the checkpoint has seen."""
    found = [
        (number, {k.removeprefix("val/"): v for k, v in row.items() if k.startswith("val/")})
        for number, row in sorted(rows.items())
        if "val/accuracy" in row and number <= step
    ]
    return [found[0], found[-1]] if len(found) > 1 else found


def _table(scores: list[tuple[int, dict[str, float]]]) -> str:
    """A column for the base and one for what is exported."""
    shown = [name for name in scores[-1][1] if not name.endswith(("_low", "_high")) and name != "problems"]
    heads = ["base" if step == 0 else f"step {step}" for step, _ in scores]
    lines = [f"| held out | {' | '.join(heads)} |", "|---|" + "--:|" * len(heads)]
    for name in shown:
        cells = [_cell(metrics, name) for _, metrics in scores]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    problems = scores[-1][1].get("problems")
    note = "" if problems is None else f"\n\n{problems:.0f} problems; 95 % intervals in brackets."
    return "\n".join(lines) + note


def _cell(metrics: dict[str, float], name: str) -> str:
    if name not in metrics:
        return "-"
    return f"{metrics[name]:.1f} tokens" if name == "length" else percent(metrics, name)


def _results(scores: list[tuple[int, dict[str, float]]], recipe: dict[str, Any]) -> list[EvalResult]:
    """The accuracy of what is exported, as the hub lists it."""
    if not scores:
        return []
    task = (recipe.get("data") or {}).get("task") or "held-out problems"
    accuracy = EvalResult(
        task_type="text-generation",
        dataset_type="held-out",
        dataset_name=" + ".join(task) if isinstance(task, dict) else str(task),
        metric_type="accuracy",
        metric_value=round(scores[-1][1]["accuracy"], 4),
    )
    return [accuracy]
