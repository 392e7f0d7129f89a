"""`lit-reason merge`: the weights of several models become one's, by mean or along the arc between two.

Models of one origin that were trained apart often lie in one basin, where a mean is as good as its parts or better:
model soups (arXiv 2203.05482), the last step of SmolLM3, and long2short's way to short answers (2501.12599). SLERP
(Shoemake 1985) goes along the arc between two tensors and so keeps their length. Adapters are averaged exactly: the
mean of products B A is no product of the means, so ranks are put side by side.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_reason.export import Parser, check_target, loading_line, staged
from lit_reason.types import UserError

if TYPE_CHECKING:
    from torch import Tensor

MODEL, ADAPTER = "config.json", "adapter_config.json"

PARALLEL = 0.9995
"""Cosine from which two tensors count as parallel: the arc's formula divides by almost nothing there."""

NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".md", ".png", ".csv", ".jsonl", ".yaml")
"""What of the first folder the result does not take over: weights, and what describes a run of its own."""

IDLE = {"dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache"}
"""Keys of config.json in which models may differ and still compute alike."""


def main(argv: list[str]) -> int:
    """Run `lit-reason merge` with the arguments after `merge`."""
    parser = Parser(
        prog="lit-reason merge",
        description="Average models of one architecture, or adapters of one base, tensor by tensor.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="model or adapter folders, two or more")
    parser.add_argument("--out", type=Path, required=True, help="where the result goes")
    parser.add_argument(
        "--method",
        choices=("linear", "slerp"),
        default="linear",
        help="linear (default): the weighted mean. slerp: along the arc between two models",
    )
    parser.add_argument(
        "--weights",
        type=float,
        nargs="+",
        help="one for each folder, divided by their sum; default: all alike. slerp goes from the first to the second",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model folder that is there already")
    options = parser.parse_args(argv)
    for line in merge(
        options.folders, options.out, method=options.method, weights=options.weights, overwrite=options.overwrite
    ):
        print(line)
    return 0


def merge(
    folders: Sequence[Path],
    out: Path,
    *,
    method: str = "linear",
    weights: Sequence[float] | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Merge folders into one.

    Args:
        folders: two or more, of models or of adapters; the first gives dtype, tokenizer and configuration.
        out: the new folder.
        method: linear, or slerp for two models.
        weights: one for each folder, divided by their sum; None is all alike.
        overwrite: replace a model folder at `out`.

    Returns:
        What was done, a line each.

    Raises:
        UserError: the folders do not go together; nothing is written then.
    """
    shares = _shares(folders, weights)
    kind = _kind(folders)
    if method == "slerp" and len(folders) != 2:
        raise UserError(f"--method slerp goes between two models, got {len(folders)}: use linear")
    if method == "slerp" and kind == ADAPTER:
        raise UserError("--method slerp is for whole models: export the adapters with --to merged, or use linear")
    check_target(out, overwrite=overwrite)
    configs = [_json(folder / kind) for folder in folders]
    if kind == MODEL:
        _check_configs(folders, configs)
    _check_tokenizers(folders)
    with ExitStack() as stack:
        files = [_Weights(folder, kind, stack) for folder in folders]
        _check_keys(folders, files)
        if kind == MODEL:
            state = {name: _blend(name, folders, files, shares, method) for name in files[0].names}
            config = configs[0]
        else:
            config, scales = _joined(folders, configs)
            state = {
                name: _side_by_side(name, files, [w * s for w, s in zip(shares, scales, strict=True)])
                for name in files[0].names
            }
        with staged(out, overwrite=overwrite) as draft:
            _write(draft, folders[0], kind, config, state)
            _describe(draft, folders, shares, f"{method} merge", out.name)
    what = "adapters" if kind == ADAPTER else "models"
    return [
        f"merged    {len(folders)} {what}, {method}, weights {', '.join(f'{share:.4g}' for share in shares)}",
        f"folder    {out}",
        f"load      {loading_line('adapter' if kind == ADAPTER else 'hf', str(out))}",
    ]


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The point at t in [0, 1] on the arc from a to b, both taken as one long vector (Shoemake 1985).

    Their angle decides; each keeps its own length. The mean where they are nearly parallel, or one is zero.
    """
    cosine = float((a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-30))
    if abs(cosine) > PARALLEL or not float(a.norm() * b.norm()):
        return (1 - t) * a + t * b
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


# ------------------------------------------------------------------ what goes together
def _shares(folders: Sequence[Path], weights: Sequence[float] | None) -> list[float]:
    if len(folders) < 2:
        raise UserError(f"merge takes two or more folders, got {len(folders)}")
    given = [1.0] * len(folders) if weights is None else list(weights)
    if len(given) != len(folders):
        raise UserError(f"--weights: expected one for each of the {len(folders)} folders, got {len(given)}")
    if any(w < 0 for w in given) or not 0 < sum(given) < math.inf:
        raise UserError(f"--weights must be 0 or more and not all 0, got {' '.join(map(str, given))}")
    return [w / sum(given) for w in given]


def _kind(folders: Sequence[Path]) -> str:
    """Whether all folders hold models, or all adapters."""
    kinds = []
    for folder in folders:
        found = next((name for name in (ADAPTER, MODEL) if (folder / name).is_file()), None)
        if found is None:
            inside = folder / "model"
            hint = f": did you mean '{inside}'?" if inside.is_dir() else ""
            raise UserError(f"merge: '{folder}' is no model folder, it has no {MODEL} nor {ADAPTER}{hint}")
        kinds.append(found)
    if len(set(kinds)) > 1:
        raise UserError("merge: some folders hold models and some adapters: export the adapters with --to merged")
    return kinds[0]


def _check_configs(folders: Sequence[Path], configs: Sequence[dict[str, Any]]) -> None:
    for folder, config in zip(folders, configs, strict=True):
        if "quantization_config" in config:
            raise UserError(f"merge: the weights of '{folder}' are quantised: merge plain ones")
        differing = sorted(k for k in {*configs[0], *config} - IDLE if configs[0].get(k) != config.get(k))
        if differing:
            key = differing[0]
            raise UserError(
                f"merge: '{folders[0]}' and '{folder}' are different architectures: {key} is "
                f"{configs[0].get(key)!r} and {config.get(key)!r} in {MODEL}"
            )


def _check_tokenizers(folders: Sequence[Path]) -> None:
    """The same id must mean the same token."""
    first: dict[str, Any] | None = None
    for folder in folders:
        if (folder / "tokenizer.json").is_file():
            found = _json(folder / "tokenizer.json")
            try:
                ids = {
                    "vocab": found["model"].get("vocab"),
                    "added": [(t["id"], t["content"]) for t in found["added_tokens"]],
                }
            except (AttributeError, KeyError, TypeError) as error:
                raise UserError(f"merge: '{folder / 'tokenizer.json'}' is no tokenizer") from error
            if first is not None and ids != first:
                raise UserError(f"merge: the tokenizers of '{folders[0]}' and '{folder}' differ")
            first = ids


def _check_keys(folders: Sequence[Path], files: Sequence[_Weights]) -> None:
    for folder, file in zip(folders, files, strict=True):
        differing = sorted(set(file.names) ^ set(files[0].names))
        if differing:
            raise UserError(f"merge: '{folders[0]}' and '{folder}' hold different weights, such as {differing[0]}")


def _joined(folders: Sequence[Path], configs: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[float]]:
    """The configuration of adapters side by side, of scale 1, and the scale each of them had."""
    scales = []
    for folder, config in zip(folders, configs, strict=True):
        odd = [
            k
            for k in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication")
            if config.get(k)
        ]
        if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or odd:
            what = odd[0] if odd else "peft_type or bias"
            raise UserError(
                f"merge: '{folder}' is no plain LoRA adapter ({what}), whose mean is none: "
                "export --to merged, and merge that"
            )
        if config.get("base_model_name_or_path") != configs[0].get("base_model_name_or_path"):
            raise UserError(
                f"merge: '{folders[0]}' and '{folder}' adapt different bases: "
                f"{configs[0].get('base_model_name_or_path')} and {config.get('base_model_name_or_path')}"
            )
        scales.append(config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]))
    rank = sum(config["r"] for config in configs)
    return configs[0] | {"r": rank, "lora_alpha": rank, "use_rslora": False}, scales


# ------------------------------------------------------------------ tensors
class _Weights:
    """The safetensors files of a folder, read a tensor at a time."""

    def __init__(self, folder: Path, kind: str, stack: ExitStack) -> None:
        from safetensors import SafetensorError, safe_open

        stem = "adapter_model" if kind == ADAPTER else "model"
        index = folder / f"{stem}.safetensors.index.json"
        names = _listed(index) if index.is_file() else [f"{stem}.safetensors"]
        self.folder = folder
        self.files: dict[str, Any] = {}
        for name in names:
            if not (folder / name).is_file():
                raise UserError(f"merge: '{folder}' has no {name}: only safetensors are read")
            try:
                file = stack.enter_context(safe_open(folder / name, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise UserError(f"merge: '{folder / name}' cannot be read: {error}") from error
            self.files |= dict.fromkeys(file.keys(), file)
        self.names = list(self.files)

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self.files[name].get_tensor(name)
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(
                f"merge: {name} of '{self.folder}' is not finite: its training has diverged, or it is damaged"
            )
        return tensor


def _blend(
    name: str, folders: Sequence[Path], files: Sequence[_Weights], shares: Sequence[float], method: str
) -> Tensor:
    """One tensor of the result: computed in float32, in the first one's dtype."""
    tensors = [file[name] for file in files]
    first = tensors[0]
    for folder, tensor in zip(folders, tensors, strict=True):
        if tensor.shape != first.shape:
            raise UserError(
                f"merge: {name} has shape {tuple(first.shape)} in '{folders[0]}' "
                f"and {tuple(tensor.shape)} in '{folder}'"
            )
    if not first.is_floating_point():
        return first
    if method == "slerp":
        return slerp(first.float(), tensors[1].float(), shares[1]).to(first.dtype)
    total = first.float() * shares[0]
    for tensor, share in zip(tensors[1:], shares[1:], strict=True):
        total.add_(tensor.float(), alpha=share)
    return total.to(first.dtype)


def _side_by_side(name: str, files: Sequence[_Weights], factors: Sequence[float]) -> Tensor:
    """One tensor of adapters joined by rank: [A1; A2] and [f1 B1, f2 B2], whose product is f1 B1 A1 + f2 B2 A2."""
    import torch

    tensors = [file[name] for file in files]
    is_a = "lora_A" in name or "lora_embedding_A" in name
    if not is_a and "lora_B" not in name and "lora_embedding_B" not in name:
        if any(not torch.equal(tensor, tensors[0]) for tensor in tensors):  # an embedding saved beside its adapter
            raise UserError(f"merge: {name} differs between the adapters: export them --to merged, and merge that")
        return tensors[0]
    outer = [tensor.shape[1:] if is_a else (tensor.shape[0], *tensor.shape[2:]) for tensor in tensors]
    if any(shape != outer[0] for shape in outer):
        raise UserError(
            f"merge: {name} fits different models: shapes {', '.join(str(tuple(t.shape)) for t in tensors)}"
        )
    if is_a:
        return torch.cat([tensor.to(tensors[0].dtype) for tensor in tensors])
    return torch.cat([t.float() * f for t, f in zip(tensors, factors, strict=True)], 1).to(tensors[0].dtype)


# ------------------------------------------------------------------ the result
def _write(folder: Path, first: Path, kind: str, config: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Weights and configuration; tokenizer and the like are the first one's."""
    from huggingface_hub import save_torch_state_dict

    for file in sorted(first.iterdir()):
        if file.is_file() and file.suffix not in NOT_COPIED and not file.name.endswith(".index.json"):
            shutil.copyfile(file, folder / file.name)
    (folder / kind).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    pattern = "adapter_model{suffix}.safetensors" if kind == ADAPTER else "model{suffix}.safetensors"
    save_torch_state_dict(state, folder, filename_pattern=pattern, metadata={"format": "pt"})


def _describe(folder: Path, sources: Sequence[Path], shares: Sequence[float], how: str, title: str) -> None:
    """The model card; the licence is the sources' where they agree."""
    from huggingface_hub import ModelCardData

    from lit_reason.model_card import LOADING, base_licence, fenced, versions, write

    adapter = (folder / ADAPTER).is_file()
    licences = {base_licence(str(source)) for source in sources}
    data = ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        license=licences.pop() if len(licences) == 1 else None,
        tags=["lit-reason", "merge"],
    )
    names = ["/".join(source.resolve().parts[-2:]) for source in sources]
    rows = "\n".join(f"| {name} | {share:.4g} |" for name, share in zip(names, shares, strict=True))
    loading = LOADING["adapter" if adapter else "model"].format(where=title)
    parts = [
        f"# {title}",
        f"A {how} by lit-reason of\n\n| | weight |\n|---|--:|\n{rows}",
        fenced(loading, "python"),
        versions(("lit-reason", "torch", "transformers")),
    ]
    write(folder, data, parts)


def _listed(index: Path) -> list[str]:
    """The files an index names, which lie beside it."""
    names = _json(index).get("weight_map")
    names = sorted({str(name) for name in names.values()}) if isinstance(names, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise UserError(f"merge: '{index}' is no index of weights beside it")
    return names


def _json(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"merge: '{file}' cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"merge: '{file}' cannot be read: expected an object")
    return found
