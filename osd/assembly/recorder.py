"""Opens the recorder of a served engine: outcomes go to Redis, or to the spill file while Redis is unreachable."""

from __future__ import annotations

from osd.assembly.lookup import open_answer_stream
from osd.assembly.routing import make_router, open_prompt_stream
from osd.config.paths import former_spill_path, spill_path
from osd.config.settings import Config
from osd.io.answers.stream import Sinks
from osd.io.outcome_stream import RedisOutcomeStream
from osd.io.recorder import Recorder
from osd.io.spill import SpillFile, adopt_orphans, adopt_spill
from osd.ports.outcomes import OutcomeSink


def open_recorder(config: Config, redis_url: str) -> Recorder:
    """Start recording to the outcome stream.

    Args:
        config: sections outcomes and engine, and the state folder, are used.
        redis_url: the Redis of the stream.
    """
    outcomes = config.outcomes
    sink = RedisOutcomeStream(
        redis_url, outcomes.stream, max_entries=outcomes.max_entries, max_bytes=outcomes.max_bytes
    )
    sinks: list[OutcomeSink] = [sink]
    if config.drafter.suffix:
        sinks.append(open_answer_stream(config, redis_url))
    if make_router(config) is not None:
        sinks.append(open_prompt_stream(config, redis_url))
    path = spill_path(config.state_dir, config.engine.id)
    adopt_spill(former_spill_path(config.state_dir), path)
    spill = SpillFile(path, max_bytes=outcomes.spill_bytes)
    adopt_orphans(spill, path.parent, outcomes.spill_bytes)
    return Recorder(Sinks(sinks), spill, queue_entries=outcomes.queue_entries)
