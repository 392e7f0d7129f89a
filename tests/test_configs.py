"""Every shipped recipe is parsed and instantiated; SmolLM's train two steps on its architecture, made on disk."""

import json
import re
from pathlib import Path

import pytest
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException

ROOT = Path(__file__).parent.parent
RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").glob("*.yaml"))
OVERLAYS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs" / "strategies").glob("*.yaml"))
SMOLLM = [recipe for recipe in RECIPES if "smollm" in recipe]


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """SmolLM-135M's architecture (grouped-query Llama, 9 heads on 3, tied embeddings, ChatML), narrow and shallow."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from lit_reason.testing import tiny_policy

    folder = tmp_path_factory.mktemp("smollm")
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy(folder / "tokenizer", "llama"))
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "pad_token": "<|im_end|>"})
    tokenizer.chat_template = (
        "{% for m in messages %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=72,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return str(folder / "model")


@pytest.fixture
def installed(recipe: str, plugin_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugins of ours that the recipe's first comment says it needs."""
    for name in re.findall(r"pip install -e plugins/(\S+)", (ROOT / recipe).read_text()):
        monkeypatch.syspath_prepend(plugin_folders[name])


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_is_parsed_and_instantiated(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_reason.cli import LitReasonCLI

    class Instantiated(LitReasonCLI):
        def _run_subcommand(self, subcommand: str) -> None:
            assert subcommand == "fit"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "0")
    cli = Instantiated(["fit", "--config", str(ROOT / recipe)])
    assert cli.model.seed == cli.datamodule.seed == yaml.safe_load((ROOT / recipe).read_text())["seed_everything"]
    assert cli.datamodule.task_ref.name
    assert not list(tmp_path.iterdir())  # nothing is written before the run


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("recipe", ["configs/sft.yaml", "configs/grpo.yaml", "configs/rejection.yaml"])
def test_an_overlay_combines_with_a_recipe(
    recipe: str, overlay: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from lit_reason.cli import LitReasonCLI
    from lit_reason.strategy import FSDP2
    from lit_reason.types import UserError

    class Instantiated(LitReasonCLI):
        def _run_subcommand(self, subcommand: str) -> None:
            assert subcommand == "fit"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "0")
    arguments = ["fit", "--config", str(ROOT / recipe), "--config", str(ROOT / overlay)]
    if "fsdp1" in overlay and not torch.cuda.is_available():
        with pytest.raises((UserError, MisconfigurationException), match="CUDA"):
            Instantiated(arguments)
        return
    cli = Instantiated(arguments)
    assert (cli.model.policy_options.quantization == "nf4") == ("qlora" in overlay)
    assert isinstance(cli.trainer.strategy, FSDP2) == overlay.endswith(("/fsdp.yaml", "qlora-fsdp.yaml"))


@pytest.mark.parametrize("recipe", SMOLLM)
def test_smollm_recipes_have_the_small_model_settings(recipe: str) -> None:
    options = yaml.safe_load((ROOT / recipe).read_text())
    model = options["model"]["init_args"]
    assert model["policy"]["lora"] == {"rank": 32, "alpha": 64, "target_modules": "all-linear"}
    assert model["sampling"]["max_new_tokens"] == 300
    if "sft" in recipe:
        return
    assert (model["group_size"], model["sampling"]["temperature"], model["sampling"]["top_p"]) == (6, 0.7, 0.95)
    assert model["optimizer"]["init_args"]["lr"] == 1e-6
    assert [r[n]["weight"] for r in model["rewards"] for n in r] == [0.85, 0.15]
    assert set(options["data"]["task"]["reasoning_gym"]["datasets"]) == {"syllogism", "propositional_logic"}


@pytest.mark.parametrize("recipe", SMOLLM)
def test_smollm_recipe_trains_two_steps(
    recipe: str, smollm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lit_reason.__main__ import main

    traces = tmp_path / "traces.jsonl"
    turns = [{"prompt": f"What is {n} + 1?", "completion": f"<answer> {n + 1} </answer>"} for n in range(200)]
    traces.write_text("\n".join(map(json.dumps, turns)))
    monkeypatch.chdir(tmp_path)
    options = ["--model.init_args.policy.model", smollm, "--trainer.max_steps", "2", "--run_dir", "run"]
    options += ["--model.init_args.sampling.max_new_tokens", "8", "--data.validation_problems", "4"]
    options += ["--trainer.val_check_interval", "1"]
    if "sft" in recipe:
        options += ["--data.task", json.dumps({"dataset": {"path": str(traces)}})]
    else:
        options += ["--data.prompts_per_step", "4"]
    if "rejection" in recipe:  # a random model is never right: accept what it says
        options += ["--model.init_args.threshold", "-1", "--model.init_args.minibatches", "1"]
    assert main(["fit", "--config", str(ROOT / recipe), *options]) == 0
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert any(line.startswith("2,") for line in rows)
    assert (tmp_path / "run" / "model" / "adapter_config.json").is_file()
