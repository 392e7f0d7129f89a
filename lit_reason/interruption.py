"""SIGTERM and Ctrl-C: the step under way is finished and saved, and the run ends saying how it goes on.

Lightning's own handler talks to the other ranks from inside the signal, in the midst of whatever they are doing with
each other; this one notes the signal and nothing else. Ranks tell each other through the store they met in, by a thread
beside the one that trains, so that a signal to one of them is known to all within a second; they stop together between
two steps. Before training there is nothing to finish, and a step that takes longer than the grace is given up: either
way the checkpoints written before stay.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_reason.checkpoint import SUFFIX
from lit_reason.types import Stopped, UserError

if TYPE_CHECKING:
    from types import FrameType

    from lit_reason.checkpoint_callback import RunCheckpoints

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_KEY = "lit_reason/stop"
_LOOK = 0.25
"""Seconds between looks at what other ranks were asked."""
_TEARDOWN = 5.0
"""Seconds that cleaning up may take when the grace is over; what hangs then is left to the system."""


class Interruption(Callback):
    """Ends a run in good order when it is told to.

    Args:
        checkpoints: what saves the last step; None saves nothing.
        grace: seconds the step under way may still take after SIGTERM. After Ctrl-C it may take as long as it likes,
            for a second Ctrl-C stops at once.
    """

    def __init__(self, checkpoints: RunCheckpoints | None = None, grace: float = 20.0) -> None:
        self.checkpoints = checkpoints
        self.grace = grace
        self.asked = 0  # the signal's number
        self._interrupts = 0
        self._training = self._saving = self._expired = self._raised = False
        self._over = threading.Event()
        self._before: dict[signal.Signals, Any] = {}
        self._trainer: Trainer | None = None

    # ------------------------------------------------------------------ from the beginning to the end
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = trainer
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self._listen()
        threading.Thread(target=self._watch, daemon=True, name="interruption").start()

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._handle)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning puts its own handlers over these right before it runs anything."""
        self._listen()

    on_test_start = on_predict_start = on_sanity_check_start

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()
        self._training = True

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401 - the rest goes unused
        """Between two steps: stop if any rank was asked to."""
        asked = self.asked
        if trainer.world_size > 1:
            asked = int(
                trainer.strategy.reduce(torch.tensor(asked, device=trainer.strategy.root_device), reduce_op="max")
            )
        if asked:
            self.asked, self._saving = asked, True
            if self.checkpoints is not None:
                self.checkpoints.save(trainer)
            raise Stopped(self._code)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saving = True  # the last step is over: what is left is to save, which is not given up

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._over.set()
        for number, handler in self._before.items():
            if threading.current_thread() is threading.main_thread():
                signal.signal(number, handler)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Another rank that stopped first breaks the connection; that is no error of this one."""
        if not self.asked:
            self.teardown(trainer, pl_module, "")
            return
        self._raised = True  # from here on signals change nothing: torchrun sends one to whoever ends second
        if trainer.is_global_zero:
            self._say(self._closing_line())
        if isinstance(exception, Exception) and not isinstance(exception, UserError):
            raise Stopped(self._code) from exception

    # ------------------------------------------------------------------ signals
    def _handle(self, number: int, _: FrameType | None) -> None:
        self.asked = self.asked or number
        self._interrupts += number == signal.SIGINT  # a terminal sends it to every rank, each counts its own
        if self._interrupts > 1:
            raise KeyboardInterrupt
        if (self._expired or not self._training) and not self._raised:
            self._raised = True
            self._share()  # before the connection breaks, or the others would not know why
            raise Stopped(self._code)

    @property
    def _code(self) -> int:
        """Of the exit. A child of the rank that started it ends with 0, else Lightning would kill that rank at once."""
        assert self._trainer is not None
        environment = getattr(self._trainer.strategy, "cluster_environment", None)
        started = environment is not None and not environment.creates_processes_externally
        return 0 if started and self._trainer.local_rank > 0 else 128 + self.asked

    def _watch(self) -> None:
        """Share what was asked with the other ranks, and see that the grace is kept; in a thread of its own."""
        store = _store()
        while not self.asked:
            if self._over.wait(_LOOK):
                return
            self._hear(store)
        self._share()
        self._tell()
        if self._training:
            end = time.monotonic() + (self.grace if self.asked == signal.SIGTERM else 1e9)
            while not self._raised and (self._saving or time.monotonic() < end):
                if self._over.wait(_LOOK):
                    return
        self._expired = True
        if not self._raised and (main := threading.main_thread().ident) is not None:
            signal.pthread_kill(main, signal.SIGTERM)
        if not self._over.wait(_TEARDOWN):  # it hangs where no signal reaches it
            self._leave()

    def _share(self) -> None:
        """Let the other ranks know."""
        store = _store()
        with suppress(RuntimeError):  # the rank that keeps the store may be gone
            if store is not None:
                store.set(_KEY, str(self.asked))

    def _hear(self, store: Any) -> None:  # noqa: ANN401 - torch's Store
        """Whether another rank was asked."""
        with suppress(RuntimeError):
            if store is not None and not self.asked and store.check([_KEY]):
                self.asked = int(store.get(_KEY))

    def _tell(self) -> None:
        if self._training and self._trainer is not None and self._trainer.is_global_zero:
            limit = "once more stops at once" if self.asked == signal.SIGINT else f"for {self.grace:.0f} s at most"
            self._say(f"the step under way is finished and saved, then the run ends ({limit})")

    def _closing_line(self) -> str:
        """What was saved, and how to go on."""
        if self.checkpoints is None:
            return "stopped"
        last = self.checkpoints.folder / f"last{SUFFIX}"
        if not last.exists():
            return "stopped; no checkpoint was written"
        path = self.checkpoints.folder / last.resolve().name
        said = f"saved {path}" if self._saving else f"stopped within a step; the last checkpoint is {path}"
        return f"{said}; go on with: lit-reason fit --config {path.parent.parent / 'config.yaml'} --resume"

    def _say(self, text: str) -> None:
        """One line on stderr, from whichever thread."""
        with suppress(OSError):
            os.write(2, f"{signal.Signals(self.asked).name}: {text}\n".encode())

    def _leave(self) -> None:
        """End this process and those it started, whatever they are doing."""
        for child in multiprocessing.active_children():
            child.kill()
        if self._trainer is not None and self._trainer.is_global_zero and not self._raised:
            self._say(self._closing_line())
        os._exit(self._code)


def _store() -> Any:  # noqa: ANN401 - torch's Store
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    if torch.distributed.get_world_size() == 1:
        return None
    return torch.distributed.distributed_c10d._get_default_store()  # noqa: SLF001 - there is no public way to it
