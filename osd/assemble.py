"""Putting an engine together from a configuration: target, drafter, recorder, weight store, hot swap."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from osd.config import Config
from osd.drafters.create import create_initial, open_drafter
from osd.drafters.shipped import find_shipped
from osd.engine import Engine
from osd.hot_swap import HotSwap
from osd.io.outcome_stream import RedisOutcomeStream
from osd.io.spill import SpillFile
from osd.io.weight_store import FileWeightStore
from osd.loop import EngineLoop
from osd.memory import give_back, use_huge_pages
from osd.models.context import rotary_boundary
from osd.models.loading import choose_device, choose_dtype, load_causal_lm
from osd.models.resolve import ResolvedTarget, resolve_target
from osd.models.stored import stored_in
from osd.models.target import Target
from osd.protocols import Drafter, OutcomeRecorder, WeightStore
from osd.recorder import Recorder
from osd.store_paths import spill_path, weights_dir
from osd.text import TextCodec
from osd.types import Event, OsdError, TokenDelta, WeightManifest, WeightsRefusedError

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class EngineAssembly:
    """A running engine with everything around it."""

    loop: EngineLoop
    store: WeightStore
    codec: TextCodec
    hot_swap: HotSwap | None
    recorder: Recorder | None

    def roll_back(self, to: int, reason: str) -> WeightManifest:
        """Serve version `to` again, as an operator asks. The hot swap sees it in the store, counts it and reports it.

        Raises:
            UnknownVersionError: there is no such version.
            WeightsRefusedError: it is in use, was itself rolled back, or is torn.
        """
        restored = self.store.roll_back(to=to, reason=reason)
        if self.hot_swap:
            self.hot_swap.wake()
        return restored

    def close(self) -> None:
        """Stop the watcher, the loop and the recorder, in that order."""
        if self.hot_swap:
            self.hot_swap.stop()
        self.loop.stop()
        if self.recorder:
            self.recorder.close()


def open_engine(
    config: Config | None = None,
    *,
    recorder: OutcomeRecorder | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    on_regression: Callable[[int, str], None] = lambda version, reason: None,
) -> Engine:
    """An engine for this process alone: no Ray, Redis or HTTP. The drafter is the store's latest version.

    Raises:
        OsdError: a model cannot be had or served; the message says what to do.
    """
    config = config or Config()
    # Explicitly, because Ray tells the libraries of an actor's process to use a single thread.
    torch.set_num_threads(config.target.threads or psutil.cpu_count(logical=False) or 1)
    resolved = resolve_target(config.target.model, config.state_dir)
    target, codec = _open_target(config, resolved)
    drafter = _open_drafter(config, resolved, target)
    if target.lm.device.type == "cpu":
        give_back()
        use_huge_pages()
    return Engine(config, target, codec, drafter, recorder=recorder, on_event=on_event, on_regression=on_regression)


def assemble_engine(
    config: Config,
    *,
    redis_url: str,
    deliver: Callable[[list[TokenDelta]], None],
    on_event: Callable[[Event], None] = lambda event: None,
) -> EngineAssembly:
    """A served engine: its own thread, outcomes to Redis, new versions swapped in.

    Args:
        config: everything.
        redis_url: where outcomes go.
        deliver: takes each step's deltas, on the engine's thread.
        on_event: told of swaps, refusals and roll backs, on several threads.

    Raises:
        OsdError: a model cannot be had or served; the message says what to do.
    """
    resolved = resolve_target(config.target.model, config.state_dir)
    recorder = _open_recorder(config, redis_url) if config.outcomes.enabled else None
    watchers: list[HotSwap] = []

    def on_regression(version: int, reason: str) -> None:
        for watcher in watchers:
            watcher.report_regression(version, reason)

    engine = open_engine(config, recorder=recorder, on_event=on_event, on_regression=on_regression)
    loop = EngineLoop(engine, deliver)
    store = open_store(config, resolved)
    if engine.drafter is not None:
        watchers.append(
            HotSwap(
                store,
                loop,
                serving=engine.drafter.version,
                poll_interval_s=config.swap.poll_interval_s,
                on_event=on_event,
            )
        )
    loop.start()
    for watcher in watchers:
        watcher.start()
    return EngineAssembly(loop, store, engine.codec, watchers[0] if watchers else None, recorder)


def open_store(config: Config, resolved: ResolvedTarget) -> FileWeightStore:
    """The versions of the configured kind of drafter for a target."""
    return FileWeightStore(weights_dir(config.state_dir, resolved.target_id, config.drafter.kind))


def ensure_first_version(config: Config, resolved: ResolvedTarget, store: WeightStore) -> None:
    """Where there is no version, publish the drafter that is shipped for this target, or else an untrained one."""
    if store.latest() is not None:
        return
    kind = config.drafter.kind
    shapes, state = create_initial(config, resolved.folder)
    shipped = find_shipped(resolved.target_id, kind, shapes, state) if config.drafter.pretrained else None
    if shipped is None:
        store.publish(state, kind=kind, config=shapes, parent=None, note="untrained")
    else:
        note, gate = f"shipped; {shipped.origin}", shipped.card.get("gate", {})
        store.publish(shipped.state, kind=kind, config=shapes, parent=None, gate=gate, note=note)


def _open_target(config: Config, resolved: ResolvedTarget) -> tuple[Target, TextCodec]:
    device = choose_device(config.target.device)
    dtype = choose_dtype(config.target.dtype, device, stored_in(resolved.folder))
    model = load_causal_lm(resolved.folder, dtype=dtype, device=device)
    _check_context(config, model)
    codec = TextCodec.open(
        resolved.folder,
        resolved.target_id,
        config.target.max_context_tokens,
        special_tokens_in_messages=config.target.special_tokens_in_messages,
    )
    target = Target(
        model,
        target_id=resolved.target_id,
        eos_ids=codec.eos_ids(resolved.folder),
        num_slots=config.engine.max_slots,
        max_context_tokens=config.target.max_context_tokens,
        max_new_tokens=max(config.engine.prefill_chunk_tokens, config.speculation.max_length + 1),
        max_round_tokens=config.speculation.max_length + 1,
        is_int4=config.target.dtype == "int4",
    )
    return target, codec


def _check_context(config: Config, model: Any) -> None:
    """See that the context that was set can be had; one that nobody set is shortened, which the log says.

    Raises:
        OsdError: it goes beyond where the model's rotary factors change.
    """
    asked, boundary = config.target.max_context_tokens, rotary_boundary(model.config.get_text_config())
    if boundary is None or asked <= boundary:
        return
    kind = type(model).__name__
    why = f"{kind} changes its rotary factors (LongRoPE) at {boundary} tokens, and osd serves it up to there"
    if "max_context_tokens" in config.target.model_fields_set:
        raise OsdError(f"target.max_context_tokens is {asked}: {why}; set {boundary} or less")
    _log.warning("the context holds %d tokens instead of %d: %s", boundary, asked, why)


def _open_drafter(config: Config, resolved: ResolvedTarget, target: Target) -> Drafter:
    store = open_store(config, resolved)
    ensure_first_version(config, resolved, store)
    latest = store.latest()
    assert latest is not None
    older = [one for one in reversed(store.list()) if one.number < latest.number and not one.rolled_back]
    refusals = []
    for candidate in (latest, *older):
        try:
            manifest, state = store.load(candidate.number)
            drafter = open_drafter(config, manifest.config, target, resolved.folder)
            drafter.prepare(state, manifest.number)()
        except WeightsRefusedError as error:  # an engine that restarts must come up with what it served before
            _log.warning("drafter version %d refused, looking for an older one: %s", candidate.number, error)
            refusals.append(error)
        else:
            return drafter
    raise refusals[0]


def _open_recorder(config: Config, redis_url: str) -> Recorder:
    outcomes = config.outcomes
    sink = RedisOutcomeStream(
        redis_url, outcomes.stream, max_entries=outcomes.max_entries, max_bytes=outcomes.max_bytes
    )
    spill = SpillFile(spill_path(config.state_dir), max_bytes=outcomes.spill_bytes)
    return Recorder(sink, spill, queue_entries=outcomes.queue_entries)
