"""From the first step to plain transformers, with a crash between: train, kill, resume, export merged, load, answer."""

import signal
import subprocess
import sys
import time

import torch

import lit_reason
from lit_reason.__main__ import main
from lit_reason.rollout import roll_out
from lit_reason.run_log import read_metrics
from lit_reason.trained import load_trained

CONFIG = """
model:
  class_path: GRPO
  init_args:
    rewards: [{{length: {{target: 4, span: 8}}}}]
    policy: {{model: {model}, lora: {{rank: 4}}}}
    group_size: 4
    sampling: {{max_new_tokens: 16}}
    optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 1.0e-2}}}}
data: {{task: {{nano_traces: {{size: 60}}}}, prompts_per_step: 2, validation_problems: 0}}
trainer: {{max_steps: 8, accelerator: cpu, enable_progress_bar: false}}
checkpoints: {{every_n_steps: 1}}
"""


def test_a_run_that_was_killed_ends_as_a_plain_model_with_the_policys_answers(tiny_llama, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config, run = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(CONFIG.format(model=tiny_llama))
    fit = ["fit", "--config", str(config), "--run_dir", str(run)]
    killed = subprocess.Popen([sys.executable, "-m", "lit_reason", *fit], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (run / "checkpoints" / "step-2.ckpt").exists():
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()

    first = read_metrics(run / "metrics.csv")[1]
    assert main([*fit, "--resume"]) == 0
    rows = read_metrics(run / "metrics.csv")
    assert sorted(rows) == list(range(1, 9))
    assert rows[1] == first  # its seconds, too: the step was not made again
    assert main(["export", str(run), "--to", "merged"]) == 0

    policy = load_trained(run / "checkpoints" / "last.ckpt").policy
    plain = AutoModelForCausalLM.from_pretrained(run / "export" / "merged")
    tokenizer = AutoTokenizer.from_pretrained(run / "export" / "merged")
    problems = [lit_reason.Problem(prompt=[{"role": "user", "content": f"{n} + 5 ="}]) for n in range(6)]
    greedy = lit_reason.Sampling(temperature=0.0, max_new_tokens=16)
    answers = roll_out(policy, problems, greedy)
    base = roll_out(lit_reason.Policy(lit_reason.PolicyOptions(model=tiny_llama)), problems, greedy)
    assert [a.completion_ids.tolist() for a in answers] != [a.completion_ids.tolist() for a in base]  # it has learnt
    for answer in answers:
        prompt = tokenizer.apply_chat_template(
            answer.problem.prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        assert torch.equal(prompt["input_ids"][0], answer.prompt_ids)
        said = plain.generate(**prompt, max_new_tokens=16, do_sample=False)[0, len(answer.prompt_ids) :]
        assert torch.equal(said[: answer.length], answer.completion_ids)
