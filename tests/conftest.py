"""Real tiny models, made once a session."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, and threads that wait for each other crawl
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ARCHITECTURES = ("llama", "qwen3", "gpt2", "gemma2")


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random checkpoints of a few thousand parameters, by architecture."""
    from lit_reason.testing import tiny_policy

    root = tmp_path_factory.mktemp("tiny")
    return {name: Path(tiny_policy(root / name, name)) for name in ARCHITECTURES}


@pytest.fixture(scope="session")
def tiny_llama(tiny_folders: dict[str, Path]) -> str:
    return str(tiny_folders["llama"])


@pytest.fixture(scope="session")
def plugin_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Our plugins and the distributions that misbehave, really installed, each into a folder for `sys.path`."""
    tests = Path(__file__).parent
    ours = ("template", "lit-reason-math", "lit-reason-code")
    sources = {name: tests.parent / "plugins" / name for name in ours}
    sources |= {name: tests / "distributions" / name for name in ("broken", "clashing", "shadowing")}
    root = tmp_path_factory.mktemp("distributions")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for name, source in sources.items():
        offline = ["--no-deps", "--no-build-isolation", "--target", str(root / name)]
        subprocess.run([*pip, *offline, str(source)], check=True)
    return {name: root / name for name in sources}


@pytest.fixture
def scorer() -> Iterator[Callable[..., Any]]:
    """Make scorers of rewards, called r0, r1, and so on; they are closed in the end and leave no process."""
    import multiprocessing

    from scoring_tools import named

    from lit_reason.scoring import Scorer

    made: list[Scorer] = []

    def make(*rewards: Any, **options: Any) -> Scorer:
        made.append(Scorer(named(*rewards), **options))
        return made[-1]

    yield make
    for scorer in made:
        scorer.close()
    assert not multiprocessing.active_children()
