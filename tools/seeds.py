"""Run a recipe with several seeds, one after another, and print what each gained as a Markdown table.

    python tools/seeds.py configs/grpo.yaml 0 1 2
    python tools/seeds.py configs/grpo.yaml 0 1 2 --model.init_args.loss dr_grpo

Each run is a process of its own, its directory `runs/seeds/<recipe>-<seed>`; further options go to `lit-reason fit`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from lit_reason.console import percent
from lit_reason.run_log import FILENAME, read_metrics


def row(folder: Path, seed: int, minutes: float) -> str:
    """One line of the table: accuracy with its interval and length, before and after."""
    steps = {step: values for step, values in read_metrics(folder / FILENAME).items() if "val/accuracy" in values}
    base, final = ({k.removeprefix("val/"): v for k, v in steps[at].items()} for at in (min(steps), max(steps)))
    gain = 100 * (final["accuracy"] - base["accuracy"])
    cells = [
        str(seed),
        percent(base, "accuracy"),
        percent(final, "accuracy"),
        f"{gain:+.1f}",
        f"{base['length']:.1f} -> {final['length']:.1f}",
        f"{minutes:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run the seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("seeds", type=int, nargs="+")
    arguments, more = parser.parse_known_args()
    table = ["| seed | base | trained | gain | tokens | minutes |", "|---|---|---|---|---|---|"]
    for seed in arguments.seeds:
        folder = Path("runs/seeds") / f"{arguments.recipe.stem}-{seed}"
        if folder.exists():
            sys.exit(f"error: {folder} exists; move or delete it first")
        start = time.monotonic()
        command = [sys.executable, "-m", "lit_reason", "fit", "--config", str(arguments.recipe)]
        subprocess.run([*command, "--seed_everything", str(seed), "--run_dir", str(folder), *more], check=True)
        table.append(row(folder, seed, (time.monotonic() - start) / 60))
    print("\n".join(table))


if __name__ == "__main__":
    main()
