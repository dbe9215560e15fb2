"""What a healthy service says of itself: its status, an engine's report, drafter versions, buckets of its history."""

from __future__ import annotations

import time

from osd.fleet.heartbeat import EngineReport
from osd.monitor.buckets import TIERS, Bucket, Series
from osd.records.drafter_id import DrafterId
from osd.records.status import DomainTraining, EngineStatus, ServedCounts, ServiceStatus, TrainerStatus, VersionsStatus
from osd.records.version import WeightManifest


def fake_manifest(
    number: int, *, rolled_back: str = "", candidate: float = 0.31, serving: float = 0.24
) -> WeightManifest:
    """A published drafter version."""
    return WeightManifest(
        number=number,
        kind="feature",
        config={"window_tokens": 256},
        config_hash="9f2c",
        parent=number - 1 if number > 1 else None,
        digest="ab41",
        training_step=40 * number,
        gate={"candidate": candidate, "serving": serving, "margin": 0.005, "published": 1.0} if number > 1 else {},
        created_at_s=time.time() - 60.0 * (10 - number),
        rolled_back=rolled_back,
    )


def fake_buckets() -> list[Bucket]:
    """Two domains with two versions, a few seconds ago."""
    rows = {
        Series("chat", "feature", 1, "engine"): {"rounds": 2.0, "proposed": 8.0, "accepted": 3.0, "committed": 5.0},
        Series("code", "feature", 2, "engine"): {"rounds": 2.0, "proposed": 8.0, "accepted": 6.0, "committed": 8.0},
    }
    return [Bucket(TIERS[0].start_of(time.time() - 20.0), rows)]


def fake_report(engine_id: str = "engine") -> EngineReport:
    """An engine's report."""
    return EngineReport(
        engine_id=engine_id,
        incarnation="1a2b",
        number=7,
        is_full=False,
        at_s=time.time(),
        node="node-1",
        device="cpu",
        device_used_bytes=6_000_000_000,
        device_bytes=24_000_000_000,
        pid=4242,
        target_id="fake-model",
        drafter=DrafterId("feature", 3),
        utilisation=0.4,
        running=2,
        waiting=1,
        free_rows=5,
        paused_s=1.5,
    )


def fake_service(*, ready: bool = True) -> ServiceStatus:
    """A healthy service in the middle of its work."""
    engine = EngineStatus(
        target="fake-model",
        drafter_kind="feature",
        drafter_version=3,
        running=2,
        waiting=1,
        max_slots=8,
        context_tokens=128,
        running_tokens=96,
        kept_tokens=160,
        utilisation=0.42,
        speculation_length=3,
        speculation_enabled=True,
        uptime_s=3725.0,
        computes="CPU: AVX2, bfloat16 weights widened in registers",
        context="context 128 tokens: the model's own",
        counters={
            "queries_total": 300.0,
            "prompt_tokens_total": 900.0,
            "reused_tokens_total": 300.0,
            "rounds_total": 70.0,
            "proposed_total": 250.0,
            "accepted_total": 75.0,
            "committed_total": 145.0,
        },
        acceptance_by_version={
            2: {"rounds": 50, "proposed": 180, "accepted": 40, "committed": 90},
            3: {"rounds": 20, "proposed": 70, "accepted": 35, "committed": 55},
        },
        served=(
            ServedCounts(
                domain="code",
                drafter="feature",
                version=3,
                figures={"rounds": 20.0, "proposed": 70.0, "accepted": 35.0, "committed": 55.0, "accepted_at_1": 20.0},
            ),
        ),
    )
    return ServiceStatus(
        ready=ready,
        engine=engine,
        trainer=_fake_trainer(),
        versions=VersionsStatus(confirmed=2, trial=3, canaries=("engine",), roll_backs=3, manual_roll_backs=1),
        domains={"sql": VersionsStatus(confirmed=1)},
        events={"publish": 3, "refuse": 4},
        restarts={"engine": 0, "trainer": 1},
        processes={"server": 210_000_000, "engine": 980_000_000, "trainer": 720_000_000, "redis": 34_000_000},
    )


def _fake_trainer() -> TrainerStatus:
    """A trainer whose last candidate was published."""
    return TrainerStatus(
        state="training",
        steps=120,
        trained_tokens=122_880,
        loss=1.84,
        learning_rate=1e-3,
        replay_records=311,
        replay_bytes=48_300_000,
        held_out_records=31,
        published_version=3,
        gate={
            "candidate": 0.31,
            "serving": 0.24,
            "margin": 0.005,
            "published": 1.0,
            "length": 1.82,
            "serving_length": 1.71,
        },
        stream_lag=2,
        domains={
            "sql": DomainTraining(state="training", steps=40, records=96, published_version=1, gate={"published": 1.0})
        },
    )
