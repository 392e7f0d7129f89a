"""Merging: numbers worked out by hand, adapters exactly, and one line for what does not go together."""

import json
import math
import shutil

import pytest
import torch
from huggingface_hub import ModelCard, save_torch_state_dict
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_reason.__main__ import main
from lit_reason.merge import slerp
from lit_reason.testing import tiny_policy

IDS = torch.tensor([[3, 1, 4, 1, 5]])


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return [tiny_policy(root / f"model{seed}", seed=seed) for seed in range(3)]


def weights(folder):
    return load_file(f"{folder}/model.safetensors")


def test_a_linear_merge_is_the_weighted_mean_and_loads(models, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["merge", *models, "--weights", "1", "2", "1", "--out", out]) == 0
    assert "merged    3 models, linear, weights 0.25, 0.5, 0.25" in capsys.readouterr().out
    a, b, c = map(weights, models)
    for name, found in weights(out).items():
        torch.testing.assert_close(found, (a[name] + 2 * b[name] + c[name]) / 4, rtol=0, atol=1e-6)
    AutoModelForCausalLM.from_pretrained(out)
    prompt = AutoTokenizer.from_pretrained(out).apply_chat_template(
        [{"role": "user", "content": "Q"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "user: Q<|end|>\nassistant: "
    assert "/model1 | 0.5 |" in ModelCard.load(f"{out}/README.md").text


@pytest.mark.parametrize(
    ("a", "b", "t", "expected"),
    [
        ([1.0, 0.0], [0.0, 1.0], 0.5, [math.sqrt(0.5), math.sqrt(0.5)]),  # half of a quarter of the circle
        ([2.0, 0.0], [0.0, 2.0], 1 / 3, [math.sqrt(3.0), 1.0]),  # 30 degrees of 90
        ([1.0, 0.0], [-0.5, math.sqrt(0.75)], 0.5, [0.5, math.sqrt(0.75)]),  # 60 degrees of 120
        ([1.0, 0.0], [3.0, 0.0], 0.25, [1.5, 0.0]),  # parallel: the mean
        ([0.0, 0.0], [4.0, 2.0], 0.5, [2.0, 1.0]),  # nothing has no direction
    ],
)
def test_slerp_goes_along_the_arc(a, b, t, expected):
    torch.testing.assert_close(slerp(torch.tensor(a), torch.tensor(b), t), torch.tensor(expected))


def test_a_slerp_merge_takes_each_tensor_as_one_vector(models, tmp_path):
    out = str(tmp_path / "out")
    arguments = ["--method", "slerp", "--weights", "3", "1", "--out", out]
    assert main(["merge", models[0], models[1], *arguments]) == 0
    a, b = weights(models[0]), weights(models[1])
    for name, found in weights(out).items():
        torch.testing.assert_close(found, slerp(a[name], b[name], 0.25))


def test_shards_are_read_and_the_first_models_dtype_is_kept(models, tmp_path):
    first, out = tmp_path / "first", tmp_path / "out"
    shutil.copytree(models[0], first)
    state = {name: x.bfloat16() for name, x in weights(first).items()}
    (first / "model.safetensors").unlink()
    save_torch_state_dict(state, first, max_shard_size="20KB", metadata={"format": "pt"})
    assert (first / "model.safetensors.index.json").is_file()
    assert main(["merge", str(first), models[1], "--out", str(out)]) == 0
    other = weights(models[1])
    for name, found in weights(out).items():
        assert torch.equal(found, ((state[name].float() + other[name]) / 2).bfloat16())
    assert not (out / "model.safetensors.index.json").exists()


@pytest.fixture(scope="module")
def adapters(models, tmp_path_factory):
    """Of one base, with different ranks and scales."""
    root = tmp_path_factory.mktemp("adapters")
    folders = []
    for number, options in enumerate([{"r": 2, "lora_alpha": 6}, {"r": 3, "lora_alpha": 4, "use_rslora": True}]):
        torch.manual_seed(number)
        config = LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False, **options)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(models[0]), config)
        model.save_pretrained(root / f"adapter{number}")
        folders.append(str(root / f"adapter{number}"))
    return folders


def test_the_mean_of_adapters_is_that_of_the_models_with_them_merged_in(models, adapters, tmp_path):
    out = str(tmp_path / "out")
    assert main(["merge", *adapters, "--weights", "3", "1", "--out", out]) == 0

    def whole(folder):
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(models[0]), folder).merge_and_unload()

    first, second = (whole(folder).state_dict() for folder in adapters)
    expected = whole(adapters[0])
    expected.load_state_dict({name: 0.75 * x + 0.25 * second[name] for name, x in first.items()})
    found = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(models[0]), out)
    assert found.peft_config["default"].r == 5
    torch.testing.assert_close(logits(found), logits(expected), rtol=1e-4, atol=1e-4)


def test_what_does_not_go_together_is_refused_in_one_line(models, adapters, tiny_folders, tmp_path, capsys):
    def refused(*arguments):
        assert main(["merge", *map(str, arguments), "--out", str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return error

    def changed(name, source, change, file):
        shutil.copytree(source, tmp_path / name)
        found = json.loads((tmp_path / name / file).read_text())
        change(found)
        (tmp_path / name / file).write_text(json.dumps(found))
        return tmp_path / name

    assert "two or more" in refused(models[0])
    assert "one for each of the 2" in refused(*models[:2], "--weights", "1")
    assert "not all 0" in refused(*models[:2], "--weights", "0", "0")
    assert "not all 0" in refused(*models[:2], "--weights", "1e308", "1e308")  # their sum is no number
    assert "between two models" in refused(*models, "--method", "slerp")
    assert "for whole models" in refused(*adapters, "--method", "slerp")
    assert "some adapters" in refused(models[0], adapters[0])
    assert "no model folder" in refused(models[0], tmp_path)
    assert "different architectures" in refused(models[0], tiny_folders["qwen3"])
    tokens = changed("tokens", models[0], lambda t: t["model"]["vocab"].update(A=0), "tokenizer.json")
    assert "tokenizers" in refused(models[0], tokens)
    base = changed("base", adapters[0], lambda c: c.update(base_model_name_or_path="other"), "adapter_config.json")
    assert "different bases" in refused(adapters[0], base)
    dora = changed("dora", adapters[0], lambda c: c.update(use_dora=True), "adapter_config.json")
    assert "(use_dora)" in refused(adapters[0], dora)
    shutil.copytree(models[0], tmp_path / "fewer")
    state = weights(models[0])
    norm = state.pop("model.norm.weight")
    save_file(state, tmp_path / "fewer" / "model.safetensors")
    assert "different weights, such as model.norm.weight" in refused(models[0], tmp_path / "fewer")
    save_file(state | {"model.norm.weight": norm[:5]}, tmp_path / "fewer" / "model.safetensors")
    assert "model.norm.weight has shape (32,)" in refused(models[0], tmp_path / "fewer")
    (tmp_path / "fewer" / "model.safetensors").write_bytes(b"cut off")
    assert "cannot be read" in refused(models[0], tmp_path / "fewer")
    (tmp_path / "fewer" / "model.safetensors").unlink()
    assert "only safetensors" in refused(models[0], tmp_path / "fewer")
