"""Builds an engine from a target and drafters; `open_engine` makes one without Ray, Redis or HTTP."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from osd.assembly.drafter import DomainDrafters, hidden_layers_for, open_latest, open_store
from osd.assembly.kernels import Prepared, awaits_kernels, num_threads, prepare_backend
from osd.assembly.lookup import make_lookup
from osd.assembly.target import open_target
from osd.config.settings import Config
from osd.engine.engine import Engine
from osd.loading.resolve import ResolvedTarget, configured_target
from osd.machine.memory import trim_heap, use_huge_pages
from osd.models.target import Target
from osd.ports.drafter import Drafter
from osd.ports.lookup import Lookup
from osd.ports.outcomes import OutcomeRecorder
from osd.ports.weight_store import WeightStore
from osd.records.events import Event
from osd.speculation.arm import Arm
from osd.speculation.calibrate import NUM_TIMINGS, calibrate
from osd.speculation.cost import Costs
from osd.speculation.depth_acceptance import AcceptanceModel
from osd.speculation.domain_arms import DomainArms
from osd.speculation.length import GoodputPolicy
from osd.speculation.lookup_arm import LookupArm
from osd.speculation.watch import SwapWatch
from osd.text.codec import TextCodec

_log = logging.getLogger(__name__)


def open_engine(
    config: Config | None = None,
    *,
    recorder: OutcomeRecorder | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Engine:
    """Open an engine in this process, without Ray, Redis or HTTP, with the latest drafter versions of the store.

    Raises:
        OsdError: a model cannot be loaded or served; the message says what to do.
    """
    config = config or Config()
    use_threads(config)
    resolved = configured_target(config)
    prepared = prepare_backend(config.target, resolved.folder, may_serve_without=False, on_progress=_log.info)
    store = open_store(config, resolved)
    engine = load_engine(
        config, resolved, prepared, store, lookup=make_lookup(config), recorder=recorder, on_event=on_event
    )
    for drafter, manifest in DomainDrafters(config, resolved, prepared.backend).stored(engine.target):
        engine.add_drafter(drafter, manifest)
    return engine


def load_engine(
    config: Config,
    resolved: ResolvedTarget,
    prepared: Prepared,
    store: WeightStore,
    *,
    lookup: Lookup | None = None,
    recorder: OutcomeRecorder | None,
    on_event: Callable[[Event], None],
    on_progress: Callable[[str], None] = lambda line: None,
) -> Engine:
    """Load target and drafter, and make an engine of them.

    Args:
        config: the whole configuration.
        resolved: the target.
        prepared: the back end. If kernels will replace it, huge pages and exact timings are left until then.
        store: the drafter's versions.
        lookup: proposes beside the drafter.
        recorder: see `Engine`.
        on_event: see `Engine`.
        on_progress: called with each stage.

    Raises:
        OsdError: a model cannot be loaded or served; the message says what to do.
    """
    is_for_now = prepared.build is not None
    on_progress("loading the target")
    target, codec = open_target(config, resolved, prepared.backend, hidden_layers_for(config, resolved, store))
    on_progress("loading the drafter")
    drafter = open_latest(config, resolved, store, target)
    on_progress("measuring what drafting and verifying take")
    if target.lm.device.type == "cpu" and not is_for_now:
        trim_heap()
        use_huge_pages()
    # A target that no kernels run stays, and what its passes cost is not measured again.
    num_timings = 1 if is_for_now and awaits_kernels(target) else NUM_TIMINGS
    costs = measure(config, target, [drafter], num_timings=num_timings)
    return make_engine(config, target, codec, [drafter], costs, lookup=lookup, recorder=recorder, on_event=on_event)


def measure(config: Config, target: Target, drafters: Sequence[Drafter], *, num_timings: int = NUM_TIMINGS) -> Costs:
    """Measure what rounds cost with this target and these drafters, for `make_engine`; overwrites their rows."""
    num_slots, max_length = config.engine.max_slots, config.speculation.max_length
    return calibrate(target, drafters, num_slots=num_slots, max_length=max_length, num_timings=num_timings)


def make_engine(
    config: Config,
    target: Target,
    codec: TextCodec,
    drafters: Sequence[Drafter],
    costs: Costs,
    *,
    lookup: Lookup | None = None,
    recorder: OutcomeRecorder | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Engine:
    """An engine whose policy chooses among the drafters.

    Args:
        config: the whole configuration.
        target: the target model.
        codec: its tokenizer.
        drafters: each becomes an arm; with none, decoding is plain.
        costs: measured by `measure`.
        lookup: proposes beside them where it has something to offer.
        recorder: see `Engine`.
        on_event: see `Engine`.
    """
    arms = [
        Arm(drafter, own, AcceptanceModel(config.speculation.max_length), SwapWatch(config.swap.watch_rounds))
        for drafter, own in zip(drafters, costs.arms, strict=True)
    ]
    found = None if lookup is None else LookupArm(lookup)
    own = DomainArms(config.drafter.max_domains)
    policy = GoodputPolicy(config.speculation, costs.verify, arms, found, own)
    return Engine(config, target, codec, policy, recorder=recorder, on_event=on_event)


def use_threads(config: Config) -> None:
    """Set torch's number of threads; Ray limits it to one in an actor's process."""
    torch.set_num_threads(num_threads(config.target))
