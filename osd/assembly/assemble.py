"""Putting an engine together from a configuration: target, drafter, recorder, weight store, hot swap."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from osd.assembly.kernels import Prepared, load_backend, num_threads, prepare_backend
from osd.config.paths import former_spill_path, spill_path, weights_path
from osd.config.settings import Config
from osd.drafters.create import create_initial, open_drafter
from osd.drafters.shipped import find_shipped
from osd.engine.engine import Engine
from osd.engine.loop import EngineLoop
from osd.io.outcome_stream import RedisOutcomeStream
from osd.io.recorder import Recorder
from osd.io.spill import SpillFile, adopt_spill
from osd.io.url_folder import open_folder
from osd.io.weight_store import FileWeightStore
from osd.kernels.backend import Backend
from osd.kernels.cpu.backend.decoder import fits_kernels
from osd.kernels.cpu.compiling.signatures import KernelSet
from osd.loading.causal_lm import choose_device, choose_dtype, load_causal_lm
from osd.loading.fit import check_fits
from osd.loading.resolve import ResolvedTarget, resolve_target
from osd.loading.stored import stored_in
from osd.machine.memory import give_back, keep, use_huge_pages
from osd.models.context import rotary_boundary
from osd.models.target import Target
from osd.ports.drafter import Drafter
from osd.ports.outcomes import OutcomeRecorder
from osd.ports.weight_store import WeightStore
from osd.records.errors import OsdError, WeightsRefusedError
from osd.records.events import Event
from osd.records.query import TokenDelta
from osd.records.version import WeightManifest
from osd.speculation.calibrate import NUM_TIMINGS
from osd.swap.hot_swap import HotSwap
from osd.swap.kernel_swap import KernelSwap
from osd.text.codec import TextCodec

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class EngineAssembly:
    """A running engine with everything around it."""

    loop: EngineLoop
    store: WeightStore
    codec: TextCodec
    hot_swap: HotSwap | None
    recorder: Recorder | None
    kernel_swap: KernelSwap | None = None

    def roll_back(self, to: int, reason: str) -> WeightManifest:
        """Serve version `to` again, as an operator asks. The hot swap sees it in the store, counts it and reports it.

        Raises:
            UnknownVersionError: there is no such version.
            WeightsRefusedError: it serves already, was itself rolled back, is torn, or was refused by the engine.
        """
        if self.hot_swap and (refusal := self.hot_swap.refusal(to)):
            raise WeightsRefusedError(f"the engine refused version {to}: {refusal}")
        restored = self.store.roll_back(to=to, reason=reason)
        if self.hot_swap:
            self.hot_swap.wake()
        return restored

    def close(self) -> None:
        """Stop the watchers, the loop and the recorder, in that order."""
        if self.kernel_swap:
            self.kernel_swap.stop()
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
    _use_threads(config)
    resolved = resolve_target(config.target.model, config.state_dir)
    prepared = prepare_backend(config.target, resolved.folder, may_serve_without=False, on_progress=_log.info)
    store = open_store(config, resolved)
    return _open_engine(config, resolved, prepared, store, recorder, on_event=on_event, on_regression=on_regression)


def _open_engine(
    config: Config,
    resolved: ResolvedTarget,
    prepared: Prepared,
    store: WeightStore,
    recorder: OutcomeRecorder | None,
    *,
    on_event: Callable[[Event], None],
    on_regression: Callable[[int, str], None],
    on_progress: Callable[[str], None] = lambda line: None,
) -> Engine:
    """See `open_engine`. Where kernels are to take over, nothing is spent on what is done anew then."""
    is_for_now = prepared.build is not None
    on_progress("loading the target")
    device = choose_device(config.target.device)
    dtype = choose_dtype(config.target.dtype, device, stored_in(resolved.folder))
    check_fits(resolved.folder, config.target.dtype, dtype, device)
    model = load_causal_lm(resolved.folder, dtype=dtype, device=device)
    _check_context(config, model)
    codec = TextCodec.open(
        resolved.folder,
        resolved.target_id,
        config.target.max_context_tokens,
        special_tokens_in_messages=config.target.special_tokens_in_messages,
    )
    target = _make_target(config, model, prepared.backend, resolved.target_id, codec.eos_ids(resolved.folder))
    on_progress("loading the drafter")
    drafter = _open_drafter(config, resolved, store, target)
    on_progress("measuring what drafting and verifying take")
    if target.lm.device.type == "cpu" and not is_for_now:
        give_back()
        use_huge_pages()
    return Engine(
        config,
        target,
        codec,
        drafter,
        recorder=recorder,
        on_event=on_event,
        on_regression=on_regression,
        # A target that no kernels run stays, and what its passes cost is not measured again.
        num_timings=1 if is_for_now and _awaits_kernels(target) else NUM_TIMINGS,
    )


def _use_threads(config: Config) -> None:
    """Explicitly, because Ray tells the libraries of an actor's process to use a single thread."""
    torch.set_num_threads(num_threads(config.target))


def assemble_engine(
    config: Config,
    *,
    redis_url: str,
    deliver: Callable[[list[TokenDelta]], None],
    on_event: Callable[[Event], None] = lambda event: None,
    on_progress: Callable[[str], None] = lambda line: None,
) -> EngineAssembly:
    """A served engine: its own thread, outcomes to Redis, new versions swapped in.

    Args:
        config: everything.
        redis_url: where outcomes go.
        deliver: takes each step's deltas, on the engine's thread.
        on_event: told of swaps, refusals and roll backs, on several threads.
        on_progress: told what it is doing, also of kernels that are compiled while it serves.

    Raises:
        OsdError: a model cannot be had or served; the message says what to do.
    """
    _use_threads(config)
    resolved = resolve_target(config.target.model, config.state_dir)
    prepared = prepare_backend(config.target, resolved.folder, may_serve_without=True, on_progress=on_progress)
    with ExitStack() as stack:
        if prepared.build is not None:
            stack.callback(prepared.build.stop)
        assembly = _assemble(config, resolved, prepared, redis_url, deliver, on_event, on_progress)
        stack.pop_all()
    return assembly


def _assemble(
    config: Config,
    resolved: ResolvedTarget,
    prepared: Prepared,
    redis_url: str,
    deliver: Callable[[list[TokenDelta]], None],
    on_event: Callable[[Event], None],
    on_progress: Callable[[str], None],
) -> EngineAssembly:
    store = open_store(config, resolved)
    recorder = _open_recorder(config, redis_url) if config.outcomes.enabled else None
    watchers: list[HotSwap] = []

    def on_regression(version: int, reason: str) -> None:
        for watcher in watchers:
            watcher.report_regression(version, reason)

    engine = _open_engine(
        config,
        resolved,
        prepared,
        store,
        recorder,
        on_event=on_event,
        on_regression=on_regression,
        on_progress=on_progress,
    )
    loop = EngineLoop(engine, deliver)
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
    kernel_swap = None
    if prepared.build is not None:
        on_progress("compiling kernels for this CPU in the background; serving with torch meanwhile")
        remake = partial(_remake, config, resolved, store, prepared.build.kernels)
        kernel_swap = KernelSwap(prepared.build, loop, remake, on_event=on_event, on_progress=on_progress)
        kernel_swap.start()
    hot_swap = watchers[0] if watchers else None
    return EngineAssembly(loop, store, engine.codec, hot_swap, recorder, kernel_swap)


def _awaits_kernels(target: Target) -> bool:
    """Whether compiled kernels are to take over this target's passes; else they only take over the drafter's."""
    return target.lm.is_fused and fits_kernels(target.lm.model)


def _remake(
    config: Config,
    resolved: ResolvedTarget,
    store: WeightStore,
    these: KernelSet,
    target: Target,
    drafter: Drafter | None,
) -> tuple[Target, Drafter | None]:
    """See `osd.swap.kernel_swap`."""
    backend = load_backend(these)
    keep()
    if _awaits_kernels(target):
        target = _make_target(config, target.lm.model, backend, target.target_id, target.eos_ids)
    if drafter is not None:
        drafter = _open_version(config, resolved, store, target, drafter.version, backend)
    return target, drafter


def open_store(config: Config, resolved: ResolvedTarget) -> FileWeightStore:
    """The versions of the configured kind of drafter for a target."""
    return FileWeightStore(open_folder(config, weights_path(resolved.target_id, config.drafter.kind)))


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


def _make_target(config: Config, model: Any, backend: Backend, target_id: str, eos_ids: frozenset[int]) -> Target:
    return Target(
        model,
        backend,
        target_id=target_id,
        eos_ids=eos_ids,
        num_slots=config.engine.max_slots,
        max_context_tokens=config.target.max_context_tokens,
        max_new_tokens=max(config.engine.prefill_chunk_tokens, config.speculation.max_length + 1),
        max_round_tokens=config.speculation.max_length + 1,
        is_int4=config.target.dtype == "int4",
    )


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


def _open_drafter(config: Config, resolved: ResolvedTarget, store: WeightStore, target: Target) -> Drafter:
    ensure_first_version(config, resolved, store)
    latest = store.latest()
    assert latest is not None
    older = [one for one in reversed(store.list()) if one.number < latest.number and not one.rolled_back]
    refusals = []
    for candidate in (latest, *older):
        try:
            return _open_version(config, resolved, store, target, candidate.number, target.backend)
        except WeightsRefusedError as error:  # an engine that restarts must come up with what it served before
            _log.warning("drafter version %d refused, looking for an older one: %s", candidate.number, error)
            refusals.append(error)
    raise refusals[0]


def _open_version(
    config: Config, resolved: ResolvedTarget, store: WeightStore, target: Target, number: int, backend: Backend
) -> Drafter:
    manifest, state = store.load(number)
    drafter = open_drafter(config, manifest.config, target, resolved.folder, backend)
    drafter.prepare(state, manifest.number)()
    return drafter


def _open_recorder(config: Config, redis_url: str) -> Recorder:
    outcomes = config.outcomes
    sink = RedisOutcomeStream(
        redis_url, outcomes.stream, max_entries=outcomes.max_entries, max_bytes=outcomes.max_bytes
    )
    path = spill_path(config.state_dir, config.engine.id)
    adopt_spill(former_spill_path(config.state_dir), path)
    spill = SpillFile(path, max_bytes=outcomes.spill_bytes)
    return Recorder(sink, spill, queue_entries=outcomes.queue_entries)
