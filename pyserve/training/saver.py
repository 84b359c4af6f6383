"""When a training's checkpoints are written, and what is said about those that are read."""

from __future__ import annotations

import time

import torch

from pyserve.errors import FailedPreconditionError
from pyserve.training.callbacks import Callbacks
from pyserve.training.checkpoint import Checkpoint, CheckpointStore


class Saver:
    """The checkpoints of one training.

    Args:
        store: where they go; None keeps none.
        identity: names the training (spec and data); a checkpoint with another one is refused.
        interval_s: one is due when the last is so old.
        callbacks: who hears about them.
    """

    def __init__(
        self, store: CheckpointStore | None, identity: str, interval_s: float, callbacks: Callbacks
    ) -> None:
        self._store, self._identity, self._interval_s, self._callbacks = store, identity, interval_s, callbacks
        self._saved_at = time.monotonic()
        self.kept_step = 0  # steps done at the newest

    @property
    def is_due(self) -> bool:
        """Whether it is time for another."""
        return self._store is not None and time.monotonic() - self._saved_at >= self._interval_s

    def wait_anew(self) -> None:
        """Count the interval from now."""
        self._saved_at = time.monotonic()

    def save(self, checkpoint: Checkpoint, step: int, epoch: int) -> None:
        """Write one, if they are kept, and tell of it: after so many steps and epochs."""
        if self._store is None:
            return
        facts = {"identity": self._identity, "threads": torch.get_num_threads()}
        self._store.save(Checkpoint(checkpoint.tensors, {**checkpoint.state, **facts}))
        self.kept_step = step
        self.wait_anew()
        self._callbacks.on_checkpoint(step, epoch)

    def load(self) -> Checkpoint | None:
        """The newest whole one, or None.

        Raises:
            DataLossError: all are damaged.
            FailedPreconditionError: it is that of another training.
        """
        checkpoint, problem = self._store.load() if self._store else (None, None)
        if checkpoint is None:
            return None
        if checkpoint.state["identity"] != self._identity:
            raise FailedPreconditionError("the checkpoint is of a training with another spec or other data")
        if problem:
            self._callbacks.on_warning("checkpoint_damaged", f"{problem}; going on from the one before")
        if checkpoint.state["threads"] != torch.get_num_threads():
            self._callbacks.on_warning(
                "threads_changed",
                f"resumed with {torch.get_num_threads()} threads, begun with {checkpoint.state['threads']}: "
                "sums are added in another order, so the weights will differ in their last bits",
            )
        return checkpoint
