"""The trainer in a process of its own beside an engine, as in service, on made-up outcomes in memory.

It has the distiller actor's priority, and yields in the same way, by the engine's utilisation a few times a second.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Self

import torch

from osd.config.outcomes import OutcomesConfig
from osd.config.trainer import TrainerConfig
from osd.fleet.spare import leaves_room
from osd.io.weight_store import FileWeightStore
from osd.kernels.reference.drafting.feature_net import FeatureConfig
from osd.loading.causal_lm import choose_device
from osd.records.outcome import BONUS, Outcome
from osd.records.outcome_arrays import pack_hidden, pack_top_k
from osd.records.shared_rows import SharedRows
from trainer.build import build_feature_student
from trainer.loop.loop import Trainer
from trainer.loop.spare import lower_priority

_ASK_INTERVAL_S = 0.5
"""The interval at which the distiller polls the engine."""
_IDLE_S = 0.1
_POLL_S = 0.01
_CLOSE_S = 5.0
_NUM_OUTCOMES = 48
_WARM_UP_STEPS = 3


class Mode(IntEnum):
    """When the trainer trains."""

    PAUSED = 0
    YIELDING = 1
    """Train while the engine is busy less than `trainer.max_utilisation` of the time."""
    ALWAYS = 2
    STOPPED = 3


@dataclass(frozen=True, slots=True)
class _Shared:
    """State shared by both processes: values of `multiprocessing`."""

    mode: Any
    """The mode asked for."""
    mode_in_force: Any
    utilisation: Any
    steps: Any
    trained_tokens: Any


class TrainingProcess:
    """Starts at once and trains nothing until told to; also a context manager.

    Args:
        net: configuration of the drafter that is trained.
        config: the `trainer` section.
        prompt_tokens: length of each outcome's prompt.
        output_tokens: length of each outcome's output.
    """

    def __init__(self, net: FeatureConfig, config: TrainerConfig, *, prompt_tokens: int, output_tokens: int) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA does not work after a fork
        self._shared = _Shared(*(context.Value(kind, 0) for kind in "iidqq"))
        self._shared.mode_in_force.value = -1
        self._folder = tempfile.TemporaryDirectory()  # owned here, so that it is removed even if the process is killed
        arguments = net, config, prompt_tokens, output_tokens, self._shared, Path(self._folder.name)
        self._process = context.Process(target=_train, args=arguments, daemon=True)
        self._process.start()
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None

    def watch(self, utilisation: Callable[[], float]) -> None:
        """Start a thread that tells the trainer how busy the engine is."""

        def tell() -> None:
            while not self._stop.wait(_ASK_INTERVAL_S):
                self._shared.utilisation.value = utilisation()

        self._watcher = threading.Thread(target=tell, daemon=True)
        self._watcher.start()

    def warm_up(self) -> None:
        """Wait until it has trained a few steps, then pause it."""
        self.set(Mode.ALWAYS)
        self._wait_until(lambda: self.progress()[0] >= _WARM_UP_STEPS)
        self.set(Mode.PAUSED)

    def set(self, mode: Mode) -> None:
        """Change the mode, and wait until no step of another mode runs."""
        self._shared.mode.value = mode
        self._wait_until(lambda: self._shared.mode_in_force.value == mode)

    def progress(self) -> tuple[int, int]:
        """(steps, output tokens trained on) since the start."""
        return self._shared.steps.value, self._shared.trained_tokens.value

    def close(self) -> None:
        """End the process."""
        self._stop.set()
        if self._watcher:
            self._watcher.join()
        self._shared.mode.value = Mode.STOPPED
        self._process.join(_CLOSE_S)
        self._process.kill()
        self._process.join()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait_until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            if not self._process.is_alive():
                raise RuntimeError("the training process died; its output says why")
            time.sleep(_POLL_S)


def _train(
    net: FeatureConfig, config: TrainerConfig, prompt_tokens: int, output_tokens: int, shared: _Shared, folder: Path
) -> None:
    """Run `Trainer` as `run_forever` does, in the mode asked for."""
    lower_priority(config.nice)
    torch.set_num_threads(config.threads)
    student = build_feature_student(config, net, _random_rows(net, choose_device(config.device)))
    store = FileWeightStore(folder / "weights")
    store.publish(student.state(), kind=student.kind, config=student.config, parent=None)
    trainer = Trainer(
        config,
        student,
        _MadeUp(net, prompt_tokens, output_tokens),
        store,
        folder / "checkpoint",
        target_id="random",
        may_train=lambda: shared.mode.value != Mode.YIELDING or leaves_room(shared.utilisation.value, config),
    )
    while (mode := shared.mode.value) != Mode.STOPPED:
        (trainer.pause if mode == Mode.PAUSED else trainer.resume)()
        shared.mode_in_force.value = mode
        status = trainer.run_once()
        shared.steps.value, shared.trained_tokens.value = status.steps, status.trained_tokens
        if status.state != "training":
            time.sleep(_IDLE_S)


def _random_rows(net: FeatureConfig, device: torch.device) -> SharedRows:
    """Random rows in place of a target's embedding and head."""
    shape = net.target_vocab_tokens, net.hidden_size
    embedding_VH, head_VH = (torch.randn(shape, dtype=torch.bfloat16, device=device) for _ in range(2))
    return SharedRows(embedding_VH, head_VH * net.hidden_size**-0.5, None)


class _MadeUp:
    """An outcome stream with a fixed number of greedy answers of real shapes and random content.

    Args:
        net: configuration of the drafter.
        prompt_tokens: length of each prompt.
        output_tokens: length of each output.
    """

    def __init__(self, net: FeatureConfig, prompt_tokens: int, output_tokens: int) -> None:
        self._net, self._prompt_tokens, self._output_tokens = net, prompt_tokens, output_tokens
        self._generator = torch.Generator().manual_seed(0)
        self._num_read = 0

    def read(self, max_count: int, block_ms: int) -> list[tuple[str, Outcome]]:
        """The next outcomes."""
        first, self._num_read = self._num_read, min(self._num_read + max_count, _NUM_OUTCOMES)
        return [(f"{number}-0", self._outcome(number)) for number in range(first, self._num_read)]

    def ack(self, positions: Sequence[str]) -> None:
        """Nothing to do: no outcome is delivered twice."""

    def lag(self) -> int:
        """Entries not read yet."""
        return _NUM_OUTCOMES - self._num_read

    def _outcome(self, number: int) -> Outcome:
        net, num_tokens = self._net, self._prompt_tokens + self._output_tokens
        ids_L = torch.randint(net.target_vocab_tokens, (num_tokens,), generator=self._generator)
        hidden_NH = torch.randn(num_tokens - 1, net.hidden_size, generator=self._generator)
        ranks_K = torch.arange(min(OutcomesConfig().top_k, net.target_vocab_tokens))
        top_ids_OK = (ids_L[self._prompt_tokens :, None] + ranks_K) % net.target_vocab_tokens
        logprobs_OK = (-ranks_K.float()).log_softmax(0).expand(self._output_tokens, -1)
        top_ids, top_logprobs, top_k = pack_top_k(top_ids_OK, logprobs_OK)
        return Outcome(
            request_id=str(number),
            domain="default",
            target_id="random",
            drafter_kind="feature",
            created_at_s=time.time(),
            prompt_ids=tuple(ids_L[: self._prompt_tokens].tolist()),
            output_ids=tuple(ids_L[self._prompt_tokens :].tolist()),
            output_kinds=bytes([BONUS]) * self._output_tokens,
            rounds=(),
            top_k=top_k,
            top_ids=top_ids,
            top_logprobs=top_logprobs,
            hidden_size=net.hidden_size,
            hidden=pack_hidden(hidden_NH),
        )
