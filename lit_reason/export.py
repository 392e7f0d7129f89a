"""`lit-reason export`: a checkpoint becomes a folder that plain transformers or PEFT loads.

`hf` is the whole model of a run that trained all weights; `adapter` and `merged` are the two forms of a run that
trained adapters: alone, to be put on their base again, or added to it for good.
"""

from __future__ import annotations

import argparse
import glob
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lit_reason.types import UserError

if TYPE_CHECKING:
    from lit_reason.policy import Policy
    from lit_reason.trained import Trained

KINDS = ("hf", "adapter", "merged", "gguf")
USAGE = 2

GGUF = (
    "--to gguf: no maintained package converts a model to GGUF, llama.cpp's own converter is a script of its "
    "repository. Export with --to hf (or merged), then run there: "
    "python convert_hf_to_gguf.py FOLDER --outfile model.gguf"
)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"error: {message}; see '{self.prog} --help'\n")


def main(argv: list[str]) -> int:
    """Run `lit-reason export` with the arguments after `export`."""
    parser = Parser(
        prog="lit-reason export",
        description="Write the policy of a checkpoint as a folder that plain transformers or PEFT loads, "
        "with tokenizer, chat template, generation config and model card.",
    )
    parser.add_argument("run", type=Path, help="a run directory, a .ckpt file, or a folder of shards")
    parser.add_argument(
        "--to",
        required=True,
        choices=KINDS,
        help="hf: the whole model. adapter: a LoRA run's adapter alone. merged: a LoRA run's adapter added to its base",
    )
    parser.add_argument("--checkpoint", help="last (default) or best of the run directory, or a path")
    parser.add_argument("--out", type=Path, help="where the folder goes; default RUN/export/KIND")
    parser.add_argument("--overwrite", action="store_true", help="replace a model folder that is there already")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights written; default: as they were trained, merged ones as their base",
    )
    parser.add_argument("--base", help="folder or hub id of the model that was trained, when it has moved since")
    parser.add_argument("--push", metavar="OWNER/NAME", help="also upload to the hub, with the token in HF_TOKEN")
    parser.add_argument("--private", action="store_true", help="make a repository that --push creates private")
    options = parser.parse_args(argv)
    if options.to == "gguf":
        raise UserError(GGUF)
    if options.push:
        check_push(options.push)
    for line in export(
        options.run,
        options.to,
        out=options.out,
        checkpoint=options.checkpoint,
        dtype=options.dtype,
        base=options.base,
        overwrite=options.overwrite,
        push=options.push,
        private=options.private,
    ):
        print(line)
    return 0


def export(
    run: Path,
    kind: str,
    *,
    out: Path | None = None,
    checkpoint: str | None = None,
    dtype: str | None = None,
    base: str | None = None,
    overwrite: bool = False,
    push: str | None = None,
    private: bool = False,
) -> Iterator[str]:
    """Write a folder; yields what was done, a line at a time.

    Args:
        run: a run directory, a checkpoint file, or a folder of shards.
        kind: hf, adapter or merged.
        out: the folder; None is `export/<kind>` in the run directory.
        checkpoint: last, best or a path, when `run` is a run directory.
        dtype: of the weights written; None leaves them as they are.
        base: where the model that was trained lies now, when not where the run found it.
        overwrite: replace a model folder.
        push: hub repository to upload to.
        private: make it a private one.

    Raises:
        UserError: anything a person can mend; nothing is written then.
    """
    from lit_reason.trained import find_checkpoint

    home, path = find_checkpoint(run, checkpoint)
    folder = home / "export" / kind if out is None else out
    check_target(folder, overwrite=overwrite)  # before a model loads
    from transformers.utils import logging

    from lit_reason.model_card import write_card
    from lit_reason.trained import load_trained

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.|peft\.")
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # shards are read by one process
    trained = load_trained(path, base)
    origin = _check_kind(trained, kind)
    if push and kind == "adapter" and Path(origin).is_dir():
        raise UserError(
            f"--push: the adapter's base is the folder '{origin}', which nobody else has. "
            "Name its hub id with --base, or export --to merged"
        )
    with staged(folder, overwrite=overwrite) as draft:
        if kind == "adapter":
            _write_adapter(trained.policy, draft, origin, dtype)
        else:
            if kind == "merged":
                merge_adapters(trained.policy)
            _write_model(trained.policy, draft, dtype)
        where = folder.name if folder.is_absolute() else str(folder)  # nobody else has the folders above
        title = home.resolve().name
        write_card(draft, kind=kind, trained=trained, base=origin, run=home, title=push or title, where=push or where)
    yield f"exported  {kind} of step {trained.step} from {path}"
    yield f"folder    {folder}"
    yield f"load      {loading_line(kind, str(folder))}"
    if push:
        yield f"pushed    {upload(folder, push, private=private)}"


def loading_line(kind: str, where: str) -> str:
    """The Python that loads an export."""
    name = "peft.AutoPeftModelForCausalLM" if kind == "adapter" else "transformers.AutoModelForCausalLM"
    return f'{name}.from_pretrained("{where}")'


# ------------------------------------------------------------------ what is written
def _check_kind(trained: Trained, kind: str) -> str:
    """Whether a policy can be exported so; where its base lies: an absolute folder, or a hub id."""
    from lit_reason.loading import resolve

    options = trained.policy.options
    if options.lora is None and kind != "hf":
        raise UserError(f"--to {kind}: this run trained all weights, there is no adapter: use --to hf")
    if options.lora is not None and kind == "hf":
        raise UserError("--to hf: this run trained adapters: use --to merged for a whole model, or --to adapter")
    where = resolve(options.model)
    origin = str(Path(where).resolve()) if Path(where).is_dir() else where
    if kind == "adapter":
        why = None
        if options.random_weights:
            why = "its base was random weights (policy.random_weights), which no folder holds"
        elif (Path(origin) / "adapter_config.json").is_file():
            why = f"its base '{options.model}' is an adapter itself, merged when it was loaded"
        if why:
            raise UserError(f"--to adapter: {why}. Use --to merged")
    return origin


def merge_adapters(policy: Policy) -> None:
    """Add the adapters to the weights they adapt, for good, dequantised where they are; the policy is plain then.

    A tied head that is adapted is untied first: PEFT adds the update to one end only, and merging would to both.
    """
    lm = policy.causal_lm
    embedding, head = lm.get_input_embeddings(), lm.get_output_embeddings()
    if head.weight is embedding.weight and (hasattr(head, "lora_A") or hasattr(embedding, "lora_A")):
        lm.config.get_text_config().tie_word_embeddings = lm.config.tie_word_embeddings = False
    policy.model = policy.merged()
    policy.options = replace(policy.options, lora=None, quantization=None)


def _write_model(policy: Policy, folder: Path, dtype: str | None) -> None:
    import torch

    if dtype is not None:
        policy.model.to(getattr(torch, dtype))
    policy.save_pretrained(folder)
    _keep_ends(policy, folder)


def _write_adapter(policy: Policy, folder: Path, origin: str, dtype: str | None) -> None:
    import torch

    if dtype is not None:
        for p in policy.parameters():
            if p.requires_grad:
                p.data = p.data.to(getattr(torch, dtype))
    config: Any = policy.model.peft_config["default"]  # type: ignore[index]  # a PeftModel
    config.base_model_name_or_path, config.revision = origin, policy.options.revision
    policy.save_pretrained(folder)
    _keep_ends(policy, folder)


def _keep_ends(policy: Policy, folder: Path) -> None:
    """Let `generate` stop at every token that ended a completion in training; the model's own defaults stay."""
    from transformers import GenerationConfig

    try:
        config = GenerationConfig.from_pretrained(folder)
    except OSError:  # an adapter has none
        config = GenerationConfig()
    config.eos_token_id = policy.eos_ids
    if config.pad_token_id is None:
        config.pad_token_id = policy.pad_id
    config.save_pretrained(folder)


# ------------------------------------------------------------------ where it is written
def check_target(folder: Path, *, overwrite: bool) -> None:
    """Whether a folder may be written: new or empty, or with `overwrite` another model folder.

    Raises:
        UserError: it may not.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out: '{folder}' is a file: name a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise UserError(f"--out: the folder '{folder}' is not empty: name another, or add --overwrite")
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise UserError(f"--overwrite: the folder '{folder}' is no model folder, so it is left alone: name another")


@contextmanager
def staged(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """A draft beside a folder that takes its place at the end; nothing half-written is left where something fails."""
    from safetensors import SafetensorError

    folder = folder.resolve()  # a link stays, what it stands for is replaced
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: '{folder}' cannot be written: {error.strerror or error}") from error
    _recover(folder)
    check_target(folder, overwrite=overwrite)
    draft, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{what}") for what in ("part", "old"))
    try:
        draft.mkdir()
        yield draft
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--out: '{folder}' cannot be written: {getattr(error, 'strerror', None) or error}") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for leftover in (draft, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _recover(folder: Path) -> None:
    """Put back what a process that died while it replaced the folder has moved aside."""
    for old in folder.parent.glob(f".{glob.escape(folder.name)}.*.old"):
        if not folder.exists():
            old.rename(folder)


# ------------------------------------------------------------------ the hub
def check_push(repository: str) -> None:
    """Whether an upload can be tried.

    Raises:
        UserError: the name is none, or there is no token.
    """
    from huggingface_hub import get_token

    if repository.count("/") != 1 or not all(repository.split("/")):
        raise UserError(f"--push: expected OWNER/NAME, got '{repository}'")
    if not get_token():
        raise UserError("--push: no token of the hub: set HF_TOKEN to one that may write")


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Upload a folder; the repository's address.

    Raises:
        UserError: the hub cannot be reached or refuses; the folder is there still.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi()
    try:
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export from lit-reason")
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx.HTTPError, OSError) as error:
        cause = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"--push: {repository}: {cause} (the export is in '{folder}')") from error
    return str(address)
