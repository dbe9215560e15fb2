"""Assembles a served engine: its thread, recorder, weight store, hot swap and kernel swap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from osd.assembly.drafter import DomainDrafters, open_store, open_version
from osd.assembly.engine import load_engine, use_threads
from osd.assembly.kernels import Prepared, awaits_kernels, load_backend, prepare_backend
from osd.assembly.lookup import make_lookup, open_feed
from osd.assembly.recorder import open_recorder
from osd.assembly.routing import make_router, open_prompt_feed
from osd.assembly.target import make_target
from osd.config.settings import Config
from osd.drafters.router import DomainRouter
from osd.engine.loop import EngineLoop
from osd.grammar.compiler import GrammarCompiler
from osd.io.answers.feed import AnswerFeed
from osd.io.recorder import Recorder
from osd.kernels.cpu.compiling.signatures import KernelSet
from osd.loading.resolve import ResolvedTarget, configured_target
from osd.machine.memory import exclude_from_gc
from osd.models.target import Target
from osd.ports.drafter import Drafter
from osd.ports.weight_store import WeightStore
from osd.records.drafter_id import drafter_name
from osd.records.events import Event
from osd.records.query import TokenDelta
from osd.swap.hot_swap import HotSwap
from osd.swap.kernel_swap import KernelSwap
from osd.swap.local_engine import LocalEngine
from osd.text.codec import TextCodec


@dataclass(slots=True)
class EngineAssembly:
    """A running engine and the parts that serve, record and swap for it."""

    loop: EngineLoop
    store: WeightStore
    codec: TextCodec
    grammars: GrammarCompiler
    hot_swap: HotSwap | None
    recorder: Recorder | None
    kernel_swap: KernelSwap | None = None
    feeds: tuple[AnswerFeed, ...] = ()
    router: DomainRouter | None = None

    def close(self) -> None:
        """Stop the watchers, the loop and the recorder, in that order."""
        for feed in self.feeds:
            feed.stop()
        if self.kernel_swap:
            self.kernel_swap.stop()
        if self.hot_swap:
            self.hot_swap.stop()
        self.loop.stop()
        if self.recorder:
            self.recorder.close()


def assemble_engine(
    config: Config,
    *,
    redis_url: str,
    deliver: Callable[[list[TokenDelta]], None],
    on_event: Callable[[Event], None] = lambda event: None,
    on_progress: Callable[[str], None] = lambda line: None,
) -> EngineAssembly:
    """Start an engine on its own thread, which records outcomes to Redis and swaps in new drafter versions.

    Args:
        config: the whole configuration.
        redis_url: server of the outcome stream.
        deliver: called with each step's deltas, on the engine's thread.
        on_event: called on swaps, refusals and roll backs, on several threads.
        on_progress: called with the stage of the start, and with the progress of compilation while the engine serves.

    Raises:
        OsdError: a model cannot be loaded or served; the message says what to do.
    """
    use_threads(config)
    resolved = configured_target(config)
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
    """See `assemble_engine`; `prepared` holds the first back end, and the running compilation of its successor."""
    store = open_store(config, resolved)
    recorder = open_recorder(config, redis_url) if config.outcomes.enabled else None
    lookup = make_lookup(config)
    engine = load_engine(
        config,
        resolved,
        prepared,
        store,
        lookup=lookup,
        recorder=recorder,
        on_event=on_event,
        on_progress=on_progress,
    )
    loop = EngineLoop(engine, deliver)
    drafters = DomainDrafters(config, resolved, prepared.backend)
    hot_swap = HotSwap(
        partial(open_store, config, resolved),
        LocalEngine(loop, drafters.make),
        retry_s=config.swap.poll_interval_s,
        on_event=on_event,
    )
    engine.policy.own.on_missing = lambda domain: hot_swap.want(drafter_name(config.drafter.kind, domain))
    kernel_swap = None
    if prepared.build is not None:
        on_progress("compiling kernels for this CPU in the background; serving with torch meanwhile")
        remake = partial(_remake, config, resolved, drafters, prepared.build.kernels)
        kernel_swap = KernelSwap(prepared.build, loop, remake, on_event=on_event, on_progress=on_progress)
    router, feeds = make_router(config), []
    if lookup is not None and recorder is not None:
        feeds.append(open_feed(config, redis_url, resolved.target_id, lookup))
    if router is not None:
        feeds.append(open_prompt_feed(config, redis_url, resolved.target_id, router))
    for feed in feeds:
        feed.start()
    loop.start()
    hot_swap.start()
    if kernel_swap is not None:
        kernel_swap.start()
    return EngineAssembly(
        loop, store, engine.codec, engine.grammars, hot_swap, recorder, kernel_swap, tuple(feeds), router
    )


def _remake(
    config: Config,
    resolved: ResolvedTarget,
    domain_drafters: DomainDrafters,
    these: KernelSet,
    target: Target,
    drafters: Sequence[Drafter],
) -> tuple[Target, list[Drafter]]:
    """See `osd.swap.kernel_swap`."""
    backend = load_backend(these)
    exclude_from_gc()
    if awaits_kernels(target):
        model, context = target.lm.model, target.context
        target = make_target(config, model, backend, context, target.target_id, target.eos_ids, target.hidden_layers)
    domain_drafters.backend = backend
    made = []
    for name, version in (drafter.id for drafter in drafters):
        store = open_store(config, resolved, name)
        made.append(open_version(config, resolved, store, target, version, backend, name))
    return target, made
