"""What the charts and tables say is what was counted: every figure by hand from what the fake engine has."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from selenium import webdriver

from osd.monitor.buckets import TIERS, Bucket, Series
from osd.records.events import Event
from osd.records.status import DomainDrift
from tests.browser.conftest import level_samples
from tests.browser.driving import choose, faults, find, open_dashboard, script, text_of, wait
from tests.kit.fakes import FakeEngineClient

pytestmark = pytest.mark.browser
NUM_BUCKETS = 60
SERVED = {
    "queries": 1.0, "rounds": 10.0, "plain_rounds": 2.0, "length_0": 2.0, "length_3": 8.0,
    "proposed": 24.0, "accepted": 12.0, "committed": 22.0, "decode_ms": 400.0, "plain_ms": 600.0,
    "proposed_at_1": 8.0, "accepted_at_1": 7.0, "proposed_at_2": 8.0, "accepted_at_2": 3.0, "proposed_at_3": 8.0,
    "accepted_at_3": 2.0,
}  # fmt: skip
"""Of five seconds."""
TRAINER = {
    **level_samples(loss=1.5, learning_rate=2e-4, replay_bytes=3_200_000.0, stream_lag=17.0),
    "trained_ms": 1000.0,
}
ENGINE = {**level_samples(utilisation=0.25), "paused_ms": 150.0}
CHARTS = {
    "rate": "50.0%", "length": "2.20", "speed": "4.4", "gain": "1.50×", "loss": "1.5", "learning": "2.0e-4",
    "replay": "3.2 MB", "lag": "17", "trained": "20.0%", "busy": "25.0%", "paused": "3.0%",
}  # fmt: skip
NEWEST = "return document.querySelector(`#chart-${arguments[0]} .value`).textContent"


@pytest.fixture
def counted(engine: FakeEngineClient) -> FakeEngineClient:
    """Five minutes of one domain, each five seconds alike."""
    rows = {
        Series("code", "feature", 3, "engine"): SERVED,
        Series(engine="engine"): ENGINE,
        Series(engine="trainer"): TRAINER,
    }
    engine.buckets = [Bucket(TIERS[0].start_of(time.time() - 5 * at), rows) for at in range(NUM_BUCKETS, 0, -1)]
    return engine


def _rows(browser: webdriver.Chrome, table: str) -> list[str]:
    found = (
        "return [...document.querySelectorAll(`#${arguments[0]} tr`)].map((row) => row.innerText.replace(/\\s+/g, ' '))"
    )
    rows: list[str] = script(browser, found, table)
    return [row.strip() for row in rows]


@pytest.mark.usefixtures("counted")
def test_every_chart_shows_what_was_counted(browser: webdriver.Chrome, url: str) -> None:
    open_dashboard(browser, url)
    assert set(script(browser, "return Object.keys(osd.charts.charts)")) == set(CHARTS)
    wait(browser, lambda: {chart: script(browser, NEWEST, chart) for chart in CHARTS} == CHARTS)
    assert faults(browser) == []


@pytest.mark.usefixtures("counted")
def test_a_range_is_summed_up(browser: webdriver.Chrome, url: str) -> None:
    open_dashboard(browser, url)
    wait(browser, lambda: _rows(browser, "summary") == ["code 50.0% 2.20 1.50× 600 60"])
    assert _rows(browser, "positions") == ["1 87.5%", "2 37.5%", "3 25.0%"]
    assert _rows(browser, "lengths") == ["0 (plain) 20.0%", "3 80.0%"]
    assert _rows(browser, "arms") == ["feature 100.0%"]
    meters = "return [...document.querySelectorAll('#positions meter')].map((one) => one.value)"
    assert script(browser, meters) == [0.875, 0.375, 0.25]


def test_decisions_of_the_gate_have_both_figures_and_say_why(
    browser: webdriver.Chrome, url: str, engine: FakeEngineClient
) -> None:
    figures = {"length": 1.9, "serving_length": 1.8, "gain_low": 0.02, "gain_high": 0.18, "margin": 0.005}
    worse = {**figures, "length": 1.81, "gain_low": -0.01, "gain_high": 0.03}
    old = {"candidate": 0.31, "serving": 0.24, "margin": 0.005}
    now_s = time.time()
    engine.event_log = [
        Event(at_s=now_s - 500, kind="publish", message="of a trainer that compared rates", data=old),
        Event(at_s=now_s - 400, kind="refuse", message="'sql' would lose", data=figures),
        Event(at_s=now_s - 300, kind="publish", message="as an operator asked", data={**worse, "demanded": 1.0}),
        Event(at_s=now_s - 200, kind="refuse", message="candidate refused", data=worse),
        Event(at_s=now_s - 100, kind="publish", message="drafter version 4 published", data=figures),
    ]
    open_dashboard(browser, url)
    wait(browser, lambda: len(_rows(browser, "gate")) == 5)
    assert [row.split(" ", 2)[2] for row in _rows(browser, "gate")] == [
        "✓ published 1.900 1.800 gain between 0.020 and 0.180: surely above 0.005",
        "× refused 1.810 1.800 gain between -0.010 and 0.030: not surely above 0.005",
        "✓ published 1.810 1.800 an operator asked for it; gain between -0.010 and 0.030",
        "× refused 1.900 1.800 gain between 0.020 and 0.180: surely above 0.005, but a domain would lose",
        "✓ published 31.0% 24.0% better than the serving version",
    ]


def test_a_domains_detector_says_what_it_was_judged_on(
    browser: webdriver.Chrome, url: str, engine: FakeEngineClient
) -> None:
    assert engine.service is not None and engine.service.trainer is not None
    drift = {
        "*": DomainDrift(state="stable", queries=0, before=0.0, recent=0.0),
        "code": DomainDrift(state="drift", queries=1400, before=0.53, recent=0.36),
        "sql": DomainDrift(state="warning", queries=6, before=0.61, recent=0.55),
    }
    open_dashboard(browser, url)
    assert not find(browser, "#drift-card").is_displayed()
    engine.service = replace(engine.service, trainer=replace(engine.service.trainer, drift=drift))
    wait(browser, find(browser, "#drift-card").is_displayed)
    assert _rows(browser, "drift") == [
        "all traffic ● stable – – 0 queries",
        "code ◆ drift 0.530 0.360 1,400 queries",
        "sql ▲ warning 0.610 0.550 6 queries",
    ]


def test_a_range_in_which_nothing_was_counted_says_so(browser: webdriver.Chrome, url: str) -> None:
    open_dashboard(browser, url)
    script(browser, "const now = Date.now() / 1000; osd.history.zoomTo(now - 200_000, now - 190_000)")
    wait(browser, find(browser, "#no-history").is_displayed)
    assert text_of(browser, "summary") == "No rounds in this range."
    choose(browser, "#range", "15 minutes")
    wait(browser, lambda: not find(browser, "#no-history").is_displayed())
