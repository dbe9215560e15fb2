"""A real Chromium, and an app over a fake engine for it to visit."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from selenium import webdriver

from osd.monitor.buckets import TIERS, Bucket, Figures, Series
from osd.records.events import Event
from osd.records.status import SpareStatus, VersionsStatus
from tests.browser.chromium import start_chromium
from tests.browser.driving import faults, page_app, script_errors
from tests.kit.fake_status import fake_manifest, fake_report, fake_service
from tests.kit.fakes import FakeEngineClient
from tests.kit.http_server import serve
from tests.kit.waiting import PATIENCE_S


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    driver = start_chromium(tmp_path_factory.mktemp("profile"))
    if driver is None:
        pytest.skip("no chromium here: apt-get install -y chromium chromium-driver")
    driver.set_script_timeout(PATIENCE_S)  # axe looks at everything, on a busy machine slowly
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def browser(chromium: webdriver.Chrome) -> Iterator[webdriver.Chrome]:
    """At the end of each test signed out, far from any server's page, of the usual size and colours, its log read.

    A test fails if a script of the page did, or if the page's own policy had to block something.
    """
    yield chromium
    wrong = script_errors(chromium)
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    chromium.delete_all_cookies()
    chromium.get("about:blank")
    faults(chromium)
    assert wrong == []


NODE = "bd2082d8ea50c52e052e45fa6d7a46724990c3cfad2ff15217319cfe"
"""Such long ones Ray gives to nodes."""
ACCEPTANCE = {1: 0.22, 2: 0.12, 3: 0.41}
TAKEOVERS = ((1200, 1), (840, 2), (720, 1), (440, 3))
"""(seconds ago, version that began to serve then)."""


@pytest.fixture
def engine() -> FakeEngineClient:
    """Twenty minutes that began with drafter version 1; 2 was worse and rolled back, 3 is better."""
    random.seed(7)
    now_s = time.time()
    buckets = []
    for ago_s in range(1200, 0, -5):
        version = [number for since_s, number in TAKEOVERS if since_s >= ago_s][-1]
        rows = {
            Series(engine="engine"): level_samples(utilisation=0.5),
            Series(engine="trainer"): {
                **level_samples(loss=1 + ago_s / 400, replay_bytes=2400.0),
                "trained_ms": 1550.0,
            },
        }
        for domain in ("chat", "code"):
            rows[Series(domain, "feature", version, "engine")] = served_figures(ACCEPTANCE[version])
        buckets.append(Bucket(TIERS[0].start_of(now_s - ago_s), rows))
    log = [
        Event(at_s=now_s - 425, kind="publish", message="drafter version 2 published: held-out acceptance 0.2510"),
        Event(at_s=now_s - 420.5, kind="swap", message="drafter version 1 -> 2 in 3.1 ms"),
        Event(at_s=now_s - 361, kind="roll_back", message="drafter version 2 -> 1: acceptance fell"),
        Event(at_s=now_s - 300, kind="restart", message="training goes on from version 1 instead of 2"),
        Event(at_s=now_s - 221, kind="publish", message="drafter version 3 published: held-out acceptance 0.3100"),
        Event(at_s=now_s - 220.5, kind="swap", message="drafter version 1 -> 3 in 2.9 ms"),
    ]
    versions = VersionsStatus(
        confirmed=1,
        trial=3,
        canaries=("engine",),
        before=0.45,
        after=0.52,
        rounds_before=900,
        rounds_after=1200,
        roll_backs=3,
        manual_roll_backs=1,
    )
    spare = SpareStatus(neighbours=("engine",), utilisation=0.8, share=0.1, training=0.31, serving_cost=0.072)
    return FakeEngineClient(
        service=replace(fake_service(), versions=versions, spare=spare),
        buckets=buckets,
        reports=[replace(fake_report(), node=NODE)],
        event_log=log,
        manifests=[fake_manifest(1), fake_manifest(2, rolled_back="accepted less, z = 5.2"), fake_manifest(3)],
    )


def served_figures(acceptance: float) -> Figures:
    """Thirty rounds of three proposed tokens."""
    accepted = [sum(random.random() < acceptance for _ in range(30)) for _ in range(3)]
    at = {f"accepted_at_{position}": float(count) for position, count in enumerate(accepted, start=1)}
    total = float(sum(accepted))
    return {
        "queries": 2.0,
        "rounds": 30.0,
        "length_3": 30.0,
        "proposed": 90.0,
        "accepted": total,
        "committed": total + 30.0,
        "decode_ms": 900.0,
        "plain_ms": 25.0 * (total + 30.0),
        **dict.fromkeys(("proposed_at_1", "proposed_at_2", "proposed_at_3"), 30.0),
        **at,
    }


def level_samples(**levels: float) -> Figures:
    """One sample of each level."""
    return {**levels, **{f"{name}.samples": 1.0 for name in levels}}


@pytest.fixture
def url(engine: FakeEngineClient) -> Iterator[str]:
    with serve(page_app(engine)) as base_url:
        yield base_url
