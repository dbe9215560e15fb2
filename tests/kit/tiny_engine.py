"""A served engine of a tiny random model, for actors: its first drafter is the target's own weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from osd.assembly.assemble import EngineAssembly
from osd.config.paths import weights_path
from osd.config.settings import Config
from osd.engine.loop import EngineLoop
from osd.io.url_folder import open_folder
from osd.io.weight_store import FileWeightStore
from osd.records.events import Event
from osd.records.query import TokenDelta
from osd.swap.hot_swap import HotSwap
from osd.swap.local_engine import LocalEngine
from tests.kit.backends import TORCH
from tests.kit.engine_kit import make_engine, make_target, model_drafter, tiny_llama, weights_of


def tiny_store(config: Config) -> FileWeightStore:
    """The versions of the tiny engine's drafter."""
    return FileWeightStore(open_folder(config, weights_path("tiny", "model")))


def assemble_tiny(
    config: Config,
    *,
    redis_url: str,
    deliver: Callable[[list[TokenDelta]], None],
    on_event: Callable[[Event], None],
    on_progress: Callable[[str], None],
) -> EngineAssembly:
    """As `osd.assembly.assemble.assemble_engine`, without Redis; starts with the version to start with."""
    import torch

    torch.set_num_threads(1)
    store, model = tiny_store(config), tiny_llama(0)
    first = store.to_start_with()
    assert first is not None
    target = make_target(copy.deepcopy(model), backend=TORCH)
    drafter = model_drafter(copy.deepcopy(model), target)
    drafter.prepare(store.load(first.number)[1], first.number)()
    engine = make_engine(target, drafter, fixed_length=2, on_event=on_event)
    loop = EngineLoop(engine, deliver)
    hot_swap = HotSwap(lambda name: store, LocalEngine(loop), retry_s=config.swap.poll_interval_s, on_event=on_event)
    loop.start()
    hot_swap.start()
    return EngineAssembly(loop, store, engine.codec, engine.grammars, hot_swap, None)


def good_weights() -> dict[str, Any]:
    """Of a drafter that guesses as the target does."""
    return weights_of(tiny_llama(0))


def bad_weights() -> dict[str, Any]:
    """Of a drafter that guesses at random; sound otherwise."""
    return weights_of(tiny_llama(1007))
