"""Verdicts on disk, a file each: nothing to lock, nothing to corrupt, and several processes may share a folder."""

from __future__ import annotations

import json
import tempfile
import uuid
from pathlib import Path

from lit_reason.rewards.judge_prompt import in_range
from lit_reason.types import UserError


class VerdictCache:
    """Scores by the digest of what was judged; no text is stored, and no key.

    Args:
        folder: made when it does not exist.

    Raises:
        UserError: it cannot be written.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder).expanduser()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise UserError(
                f"reward 'judge': cache must be a folder that can be written or null, got '{folder}' ({error.strerror})"
            ) from error

    def get(self, digest: str) -> float | None:
        """The score, None where there is none or its file is damaged."""
        try:
            score = json.loads(self._file(digest).read_bytes())
        except (OSError, ValueError):
            return None
        return float(score) if in_range(score) else None

    def put(self, digest: str, score: float) -> None:
        """Store a score; a reader sees all of it or nothing."""
        file = self._file(digest)
        file.parent.mkdir(exist_ok=True)
        part = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
        part.write_text(json.dumps(score), encoding="ascii")
        part.replace(file)

    def _file(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest  # so that no folder grows beyond reason
