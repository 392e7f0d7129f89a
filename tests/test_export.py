"""Exports: plain libraries load them and say what the trainer says; nothing half-written, no secrets, no code run."""

import json
import pickle
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from torch.distributed.checkpoint import state_dict_saver

import lit_reason
from lit_reason.__main__ import main
from lit_reason.batching import collate
from lit_reason.export import staged
from lit_reason.model_card import presentable
from lit_reason.rollout import roll_out
from lit_reason.trained import load_trained
from lit_reason.types import Problem, UserError

CONFIG = """
model:
  class_path: SFT
  init_args:
    policy: {{model: {model}, lora: {lora}}}
    sampling: {{max_new_tokens: 12}}
    optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 1.0e-2}}}}
data: {{task: {{nano_traces: {{size: 8}}}}, prompts_per_step: 4, validation_problems: 2}}
trainer: {{max_steps: 2, val_check_interval: 2, enable_progress_bar: false}}
"""
ADAPTERS = {
    "full": "null",
    "lora": "{rank: 3}",
    "dora": "{rank: 2, dora: true, rslora: true}",
    "nf4": "{rank: 2}, quantization: nf4",
    "head": "{rank: 2, target_modules: [q_proj, lm_head]}",
}
PROMPT = [{"role": "user", "content": "1 + 2 ="}]

PLAIN = """
import json, sys
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
found = {}
for name, folder in json.loads(sys.argv[1]).items():
    loader = AutoPeftModelForCausalLM if name.endswith("adapter") else AutoModelForCausalLM
    model, tokenizer = loader.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "1 + 2 ="}], add_generation_prompt=True,
                                           return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    with torch.no_grad():
        logprobs = model(answer).logits.float().log_softmax(-1)[0, :-1].gather(-1, answer[0, 1:, None])[:, 0]
    start = prompt["input_ids"].shape[1]
    found[name] = answer[0, start:].tolist(), logprobs[start - 1:].tolist()
print(json.dumps([found, "lit_reason" in sys.modules]))
"""


@pytest.fixture(scope="module")
def runs(tiny_llama, tmp_path_factory):
    """A run directory for each kind of adapter."""
    root = tmp_path_factory.mktemp("runs")
    for name, lora in ADAPTERS.items():
        model = tiny_llama
        if name == "head":  # of which an end is the embedding
            lm = lit_reason.Policy(lit_reason.PolicyOptions(model=tiny_llama, random_weights=True))
            lm.model.config.tie_word_embeddings = True
            lm.model.tie_weights()
            model = str(root / "tied")
            lm.save_pretrained(model)
        (root / f"{name}.yaml").write_text(CONFIG.format(model=model, lora=lora))
        assert main(["fit", "--config", str(root / f"{name}.yaml"), "--run_dir", str(root / name)]) == 0
    return root


def says(checkpoint):
    """Greedy answer and its log-probabilities, as the trained policy gives them."""
    policy = load_trained(checkpoint).policy
    rollout = roll_out(policy, [Problem(prompt=PROMPT)], lit_reason.Sampling(max_new_tokens=12, temperature=0))[0]
    with torch.no_grad():
        logprobs = policy.logprobs(collate([rollout]))[0][0]
    return rollout.completion_ids.tolist(), logprobs.tolist()


def test_plain_libraries_load_every_export_and_say_what_the_trainer_says(runs, capsys):
    folders = {}
    for run, kind in [
        ("full", "hf"),
        *((name, to) for name in ADAPTERS.keys() - {"full"} for to in ("adapter", "merged")),
    ]:
        assert main(["export", str(runs / run), "--to", kind]) == 0
        folders[f"{run} {kind}"] = str(runs / run / "export" / kind)
        out = capsys.readouterr().out
        assert f"exported  {kind} of step 2" in out
        assert f'from_pretrained("{folders[f"{run} {kind}"]}")' in out
    command = [sys.executable, "-c", PLAIN, json.dumps(folders)]
    done = subprocess.run(command, cwd=runs, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found, imported = json.loads(done.stdout)
    assert not imported
    found.pop("nf4 adapter")  # its base is finer here than it was in training
    for name, (answer, logprobs) in found.items():
        expected, trained = says(runs / name.split()[0] / "checkpoints" / "last.ckpt")
        assert answer == expected, name
        assert logprobs == pytest.approx(trained, abs=1e-4 if name.endswith("merged") else 1e-5), name


def test_a_policy_read_for_export_is_the_one_the_module_goes_on_with(runs):
    path = runs / "dora" / "checkpoints" / "last.ckpt"
    expected = lit_reason.SFT.load_from_checkpoint(path, weights_only=True).policy.state_dict()
    assert len(torch.load(path, weights_only=True)["state_dict"]) < len(expected)  # adapters alone
    found = load_trained(path).policy.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_card_holds_scores_curve_recipe_and_versions(runs):
    main(["export", str(runs / "full"), "--to", "hf", "--overwrite"])
    folder = runs / "full" / "export" / "hf"
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.eval_results[0].dataset_name == "nano_traces"
    for text in ("| held out | base | step 2 |", "curve.png", "class_path: lit_reason.SFT", "torch 2", "2 problems"):
        assert text in card.text
    assert str(runs) not in card.content  # where things lie here concerns nobody
    assert (folder / "curve.png").is_file()


def test_a_recipe_is_shown_without_secrets_and_local_paths():
    recipe = {"api_key": "sk-1", "api_key_env": "MY_KEY", "hf_token": "x", "max_new_tokens": 3, "unset": None}
    recipe |= {"url": "https://me:pw@host/v1", "files": ["/home/me/data.jsonl"], "lr": 0.1}
    assert presentable(recipe) == {
        "api_key": "***",
        "api_key_env": "MY_KEY",
        "hf_token": "***",
        "max_new_tokens": 3,
        "url": "https://host/v1",
        "files": ["data.jsonl"],
        "lr": 0.1,
    }


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("https://me:p@ss@host/v1", "https://host/v1"),
        ("https://host/v1?api_key=abc&n=1", "https://host/v1?***&***"),
        ("--token=hf_abc run", "--token=*** run"),
        ("use sk-abcdefghijklmnopqrstuv now", "use *** now"),
        ("2 + 2 = 4", "2 + 2 = 4"),
    ],
)
def test_secrets_in_texts_are_not_shown(shown, expected):
    assert presentable(shown) == expected
    assert presentable({"X-API-Key": "a", "accessToken": "b", "aws_secret_access_key": "c", "tokens": 5}) == {
        **dict.fromkeys(("X-API-Key", "accessToken", "aws_secret_access_key"), "***"),
        "tokens": 5,
    }


def test_a_checkpoint_with_a_flipped_bit_is_not_exported(runs, tmp_path, capsys):
    content = bytearray((runs / "full" / "checkpoints" / "last.ckpt").read_bytes())
    content[len(content) // 2] ^= 64
    (tmp_path / "flipped.ckpt").write_bytes(content)
    assert main(["export", str(tmp_path / "flipped.ckpt"), "--to", "hf", "--out", str(tmp_path / "out")]) == 1
    assert "is damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_shards_are_put_together(runs, tmp_path):
    whole = runs / "lora" / "checkpoints" / "last.ckpt"
    rest = torch.load(whole, weights_only=True)
    folder = tmp_path / "sharded.ckpt"
    shards = {"state_dict": rest.pop("state_dict"), "optimizer_0": {"state": {"x": torch.ones(3), "note": "text"}}}
    state_dict_saver.save(shards, checkpoint_id=folder, no_dist=True)
    torch.save(rest, folder / "meta.pt")
    found, expected = load_trained(folder), load_trained(whole)
    assert found.step == expected.step == 2
    for name, value in expected.policy.state_dict().items():
        assert torch.equal(found.policy.state_dict()[name], value), name


def test_code_in_the_metadata_of_shards_is_refused_unexecuted(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    (tmp_path / "evil").mkdir()
    torch.save({}, tmp_path / "evil" / "meta.pt")
    (tmp_path / "evil" / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="holds code"):
        load_trained(tmp_path / "evil")
    assert not (tmp_path / "executed").exists()


def test_weights_keep_the_precision_they_were_trained_in_and_take_another_when_asked(runs, tmp_path):
    whole = torch.load(runs / "full" / "checkpoints" / "last.ckpt", weights_only=True)
    whole["state_dict"] = {name: x.bfloat16() for name, x in whole["state_dict"].items()}
    torch.save(whole, tmp_path / "bf16.ckpt")
    assert main(["export", str(tmp_path / "bf16.ckpt"), "--to", "hf"]) == 0
    assert json.loads((tmp_path / "export" / "hf" / "config.json").read_text())["dtype"] == "bfloat16"
    arguments = ["--checkpoint", "best", "--dtype", "float16", "--out", str(tmp_path / "half")]
    assert main(["export", str(runs / "lora"), "--to", "merged", *arguments]) == 0
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"


def refused(capsys, *arguments):
    assert main(["export", *map(str, arguments)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_what_cannot_be_exported_is_refused_in_one_line(runs, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    assert "use --to hf" in refused(capsys, runs / "full", "--to", "adapter")
    assert "--to merged for a whole model" in refused(capsys, runs / "lora", "--to", "hf")
    assert "convert_hf_to_gguf.py" in refused(capsys, runs / "full", "--to", "gguf")
    assert "give a run directory" in refused(capsys, tmp_path / "nowhere", "--to", "hf")
    assert "there are best.ckpt, last.ckpt" in refused(capsys, runs / "full", "--to", "hf", "--checkpoint", "x.ckpt")
    assert "does not say which policy" in refused(capsys, tmp_path / "other.ckpt", "--to", "hf")
    assert "add --overwrite" in refused(capsys, runs / "full", "--to", "hf", "--out", tmp_path / "mine")
    arguments = ["--out", tmp_path / "mine", "--overwrite"]
    assert "no model folder" in refused(capsys, runs / "full", "--to", "hf", *arguments)
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_an_adapter_whose_base_is_another_now_is_refused(runs, tiny_folders, tmp_path, capsys):
    other = lit_reason.testing.tiny_policy(tmp_path / "other", seed=5)
    for kind, base in (("adapter", other), ("merged", tiny_folders["qwen3"])):
        error = refused(capsys, runs / "lora", "--to", kind, "--out", tmp_path / "out", "--base", base)
        assert "were trained on: name with --base" in error
    wrong = tiny_folders["qwen3"]
    assert "are not those of" in refused(
        capsys, runs / "full", "--to", "hf", "--out", tmp_path / "out", "--base", wrong
    )
    assert not (tmp_path / "out").exists()


def test_an_export_that_fails_leaves_nothing_half_written(runs, tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    out = tmp_path / "out"
    main(["export", str(runs / "full"), "--to", "hf", "--out", str(out)])
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    monkeypatch.setattr(lit_reason.Policy, "save_pretrained", full_disk)
    assert main(["export", str(runs / "full"), "--to", "hf", "--out", str(out), "--overwrite"]) == 1
    assert main(["export", str(runs / "full"), "--to", "hf", "--out", str(tmp_path / "new")]) == 1
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert list(tmp_path.iterdir()) == [out]


def test_what_a_death_in_the_midst_of_replacing_moved_aside_is_put_back(tmp_path):
    out = tmp_path / "out"
    with staged(out, overwrite=False) as draft:
        (draft / "config.json").touch()
    out.rename(tmp_path / ".out.7.old")
    with pytest.raises(UserError, match="is not empty"), staged(out, overwrite=False):
        pass
    assert (out / "config.json").exists()


class Hub(BaseHTTPRequestHandler):
    """The endpoints of a hub that an upload needs; keeps what it is told."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers["Authorization"], body))
        answer = {}
        if self.path.endswith("/create"):
            answer = {"url": f"{huggingface_hub.constants.ENDPOINT}/me/model", "name": "me/model"}
        if "/preupload/" in self.path:
            files = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]]
            answer = {"files": [f | {"shouldIgnore": False, "oid": None} for f in files]}
        if "/commit/" in self.path:
            answer = {
                "success": True,
                "commitOid": "0" * 40,
                "commitUrl": f"{huggingface_hub.constants.ENDPOINT}/me/model/commit/{0:040}",
            }
        self._answer(answer)

    def do_GET(self):
        self._answer({"id": "me/model", "sha": "0" * 40, "siblings": []})

    def _answer(self, answer):
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Hub)
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()
    server.server_close()


def test_an_export_is_pushed_with_the_token_of_the_environment(runs, hub, tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "out"), "--push", "me/model"]
    assert main(["export", str(runs / "full"), "--to", "hf", *arguments]) == 0
    assert "pushed    http://" in capsys.readouterr().out
    assert {authorization for _, authorization, _ in hub.seen} == {"Bearer hf_secret"}
    commit = next(body.decode() for path, _, body in hub.seen if "/commit/" in path)
    sent = {json.loads(line)["value"].get("path") for line in commit.splitlines()} - {None}
    assert sent == {p.name for p in (tmp_path / "out").iterdir()}
    assert 'from_pretrained("me/model")' in (tmp_path / "out" / "README.md").read_text()
    assert "hf_secret" not in (tmp_path / "out" / "README.md").read_text()


def test_a_push_that_cannot_be_done_says_why(runs, hub, tmp_path, capsys, monkeypatch):
    push = ["--out", tmp_path / "out", "--push"]
    assert "which nobody else has" in refused(capsys, runs / "lora", "--to", "adapter", *push, "me/model")
    assert "expected OWNER/NAME" in refused(capsys, runs / "full", "--to", "hf", *push, "model")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert f"the export is in '{tmp_path / 'out'}'" in refused(capsys, runs / "full", "--to", "hf", *push, "me/model")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "set HF_TOKEN" in refused(capsys, runs / "full", "--to", "hf", *push, "me/model")


def test_help_needs_no_torch():
    code = "import sys; from lit_reason.__main__ import main\ntry: main([sys.argv[1], '--help'])\n"
    code += "finally: print('torch' in sys.modules)"
    for command in ("export", "merge"):
        done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, check=False)
        assert done.stdout.startswith(f"usage: lit-reason {command}")
        assert done.stdout.endswith("False\n")
