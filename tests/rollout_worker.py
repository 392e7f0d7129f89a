"""Sample completions on one or two gloo ranks; started by test_in_process.py."""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lit_reason import Policy, PolicyOptions, Problem, Sampling
from lit_reason.rollout import roll_out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("out")
    parser.add_argument("--ranks", type=int, default=1)
    arguments = parser.parse_args()
    mp.spawn(sample, (arguments.ranks, arguments.folder, arguments.out), nprocs=arguments.ranks)


def sample(rank: int, ranks: int, folder: str, out: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{out}.store{ranks}", rank=rank, world_size=ranks)
    asked = [Problem(prompt=[{"role": "user", "content": f"{a} + 7"}], id=str(a)) for a in range(8)]
    rollouts = roll_out(
        Policy(PolicyOptions(model=folder)), asked[rank::ranks], Sampling(max_new_tokens=30), 3, stream=(0, 4)
    )
    mine = {f"{r.problem.id}/{i % 3}": r.completion_ids.tolist() for i, r in enumerate(rollouts)}
    gathered: list[dict[str, list[int]]] = [{}] * ranks
    dist.all_gather_object(gathered, mine)
    if rank == 0:
        torch.save({name: ids for part in gathered for name, ids in sorted(part.items())}, Path(out))


if __name__ == "__main__":
    main()
