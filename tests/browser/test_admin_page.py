"""The admin page in a real Chromium, over a fake engine."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from osd.records.status import EngineStatus, TrainerStatus
from tests.browser.conftest import NODE
from tests.browser.driving import (
    click,
    content,
    faults,
    find,
    let_pass,
    open_dashboard,
    page_app,
    script,
    sign_in,
    text_of,
    wait,
)
from tests.kit.fakes import FakeEngineClient
from tests.kit.http_server import serve

pytestmark = pytest.mark.browser

API_REQUESTS = (
    "return performance.getEntriesByType('resource').map(one => one.name).filter(one => one.includes('/api/'))"
)


def test_shows_figures_charts_versions_and_events(
    browser: webdriver.Chrome, url: str, engine: FakeEngineClient
) -> None:
    open_dashboard(browser, url)
    newest = [figures for bucket in engine.buckets[-60:] for series, figures in bucket.rows.items() if series.domain]
    sums = {name: sum(one[name] for one in newest) for name in ("accepted", "proposed", "committed", "rounds")}
    wait(browser, lambda: text_of(browser, "now-length") not in ("", "–"))
    assert float(text_of(browser, "now-length")) == pytest.approx(sums["committed"] / sums["rounds"], abs=0.05)
    assert float(text_of(browser, "now-rate")[:-1]) == pytest.approx(100 * sums["accepted"] / sums["proposed"], abs=2.0)
    assert text_of(browser, "now-version") == "v3"
    lines = script(browser, "return osd.charts.charts.rate.drawn.lines")
    assert lines == ["chat", "code"]
    keys = [one.text for one in browser.find_elements(By.CSS_SELECTOR, "#chart-rate .key")]
    assert [key.split()[0] for key in keys] == ["chat", "code"] and all(key.endswith("%") for key in keys)
    positions = [one.text for one in browser.find_elements(By.CSS_SELECTOR, "#positions tr")]
    assert [row.split()[0] for row in positions] == ["1", "2", "3"]
    rows = [one.text for one in browser.find_elements(By.CSS_SELECTOR, "#versions tr")]
    assert rows[0].startswith("v3 serving on trial") and "31.0% vs 24.0%" in rows[0]
    assert rows[1].startswith("v2 rolled back") and rows[2].startswith("v1 confirmed")
    assert "training goes on from version 1 instead of 2" in text_of(browser, "events")
    assert "980 MB" in text_of(browser, "processes")
    assert text_of(browser, "engines").startswith("engine")
    (device,) = (one.text for one in browser.find_elements(By.CSS_SELECTOR, "#devices tr"))
    assert device == f"{NODE[:10]}… cpu ● up engine trains here 40.0% 6 GB of 24 GB"
    arms = [one.text for one in browser.find_elements(By.CSS_SELECTOR, "#arms tr")]
    assert arms == ["feature 100.0%"]
    assert find(browser, f"#engines td[title='{NODE}']").text == f"{NODE[:10]}…"
    assert text_of(browser, "roll-backs") == "Rolled back since the supervisor started: 2 automatically, 1 by hand."
    assert faults(browser) == []  # no script error, no refused request, nothing that the page's own policy had to block


def test_an_actor_that_is_away_and_a_silent_node_are_told(
    browser: webdriver.Chrome, url: str, engine: FakeEngineClient
) -> None:
    assert engine.service is not None
    actors = ("engine", "distiller", "supervisor")
    processes = dict.fromkeys(("server", *actors), 1 << 20)
    engine.service = replace(engine.service, processes=processes, restarts=dict.fromkeys((*actors, "ray"), 0))
    open_dashboard(browser, url)

    def health() -> dict[str, str]:
        """Of each process; the last row is their sum."""
        rows = browser.find_elements(By.CSS_SELECTOR, "#processes tr")[:-1]
        return {row.text.split()[0]: row.find_element(By.CSS_SELECTOR, ".badge").text for row in rows}

    wait(browser, lambda: health() == {**dict.fromkeys(("server", *actors), "● up"), "ray": "! away"})
    engine.service = replace(engine.service, trainer=None, versions=None)
    report = engine.reports[0]
    engine.reports = [replace(report, at_s=time.time() - 60), replace(report, engine_id="b", at_s=time.time() + 60)]
    wait(browser, lambda: text_of(browser, "devices").split("cpu ")[1].startswith("! 1 of 2 silent engine, b"))
    away = dict.fromkeys(("distiller", "supervisor", "ray"), "! away")
    assert health() == {"server": "● up", "engine": "● up", **away}


def test_no_request_leaves_the_host(browser: webdriver.Chrome, url: str) -> None:
    open_dashboard(browser, url)
    click(browser, "#ask")
    wait(browser, lambda: find(browser, "#ask").is_enabled() and text_of(browser, "plain-figures"))
    asked = script(browser, "return performance.getEntriesByType('resource').map((one) => one.name)")
    assert len(asked) > 20 and [one for one in asked if not one.startswith(f"{url}/admin/")] == []


def test_a_first_visit_asks_for_the_token_before_anything_else(browser: webdriver.Chrome, url: str) -> None:
    browser.get(f"{url}/admin")
    wait(browser, browser.find_element(By.ID, "token").is_displayed)
    wait(browser, lambda: script(browser, "return performance.now() > 2500"))  # longer than between two polls
    assert browser.switch_to.active_element.get_attribute("id") == "token"
    assert script(browser, API_REQUESTS) == []
    assert faults(browser) == []


def test_times_have_their_date_and_zone(browser: webdriver.Chrome, url: str, engine: FakeEngineClient) -> None:
    open_dashboard(browser, url)
    shown = browser.find_elements(By.CSS_SELECTOR, "#events time")
    assert len(shown) == len(engine.event_log)
    for time_element, event in zip(reversed(shown), engine.event_log, strict=True):
        at = datetime.fromtimestamp(event.at_s).astimezone()
        assert time_element.text == at.strftime("%Y-%m-%d %H:%M:%S")
        machine = time_element.get_attribute("datetime")
        assert machine is not None and abs(datetime.fromisoformat(machine).timestamp() - event.at_s) < 0.01
        assert str(at.tzname()) in (time_element.get_attribute("title") or "")
    published = [one.text for one in browser.find_elements(By.CSS_SELECTOR, "#versions time")]
    expected = [datetime.fromtimestamp(one.created_at_s).isoformat(" ", "seconds") for one in engine.manifests]
    assert published == expected[::-1]
    assert text_of(browser, "freshness").startswith(datetime.now().strftime("updated %Y-%m-%d "))


def test_off_is_not_shown_as_broken(browser: webdriver.Chrome, url: str, engine: FakeEngineClient) -> None:
    off = TrainerStatus(state="off", message="trainer.enabled or outcomes.enabled is false")
    assert engine.service is not None
    engine.service = replace(engine.service, engine=_plain(engine), trainer=off)
    open_dashboard(browser, url)
    state = find(browser, "#trainer-state")
    assert (state.text, state.get_attribute("class")) == ("off", "badge ")
    assert text_of(browser, "trainer-message") == off.message
    assert not find(browser, "#pause").is_displayed() and not find(browser, "#resume").is_displayed()
    assert (text_of(browser, "now-k"), text_of(browser, "now-k-note")) == ("off", "plain decoding")
    assert text_of(browser, "now-version-note") == "not in use"
    engine.service = replace(engine.service, trainer=None)
    wait(browser, lambda: state.text == "no answer")
    assert state.get_attribute("class") == "badge bad"


def _plain(engine: FakeEngineClient) -> EngineStatus:
    assert engine.service is not None and engine.service.engine is not None
    return replace(engine.service.engine, speculation_enabled=False)


def test_follows_the_engine(browser: webdriver.Chrome, url: str, engine: FakeEngineClient) -> None:
    sign_in(browser, url)
    wait(browser, lambda: text_of(browser, "now-queries") == "2 / 8")
    assert engine.service is not None and engine.service.engine is not None
    engine.service = replace(engine.service, engine=replace(engine.service.engine, running=7))
    wait(browser, lambda: text_of(browser, "now-queries") == "7 / 8")


def test_wrong_token_shows_nothing(browser: webdriver.Chrome, url: str) -> None:
    sign_in(browser, url, "wrong")
    wait(browser, lambda: text_of(browser, "login-error") == "Wrong admin token.")
    assert not browser.find_element(By.ID, "dashboard").is_displayed()
    assert browser.switch_to.active_element.get_attribute("id") == "token"
    assert [one for one in faults(browser) if "/admin/api/login" not in one] == []


def test_pausing_asks_first(browser: webdriver.Chrome, url: str, engine: FakeEngineClient) -> None:
    open_dashboard(browser, url)
    click(browser, "#pause")
    click(browser, "#confirm-no")
    assert engine.calls == []
    click(browser, "#pause")
    click(browser, "#confirm-yes")
    wait(browser, lambda: engine.calls == [("pause",)])
    wait(browser, lambda: content(browser, "#announcement") == "Training is paused.")


def test_says_when_the_server_is_gone(browser: webdriver.Chrome, engine: FakeEngineClient) -> None:
    with serve(page_app(engine)) as url:
        open_dashboard(browser, url)
    assert text_of(browser, "alert") == ""
    let_pass(browser, 8)
    wait(browser, lambda: "No answer from the server" in text_of(browser, "alert"))
    said, at_ms = text_of(browser, "alert"), script(browser, "return performance.now()")
    wait(browser, lambda: script(browser, "return performance.now()") > at_ms + 2500)
    assert text_of(browser, "alert") == said  # it is an alert: whatever changes in it is read out
    assert text_of(browser, "now-version") == "v3"  # what was known stays, marked as old


def test_session_survives_a_reload_and_ends_on_sign_out(browser: webdriver.Chrome, url: str) -> None:
    open_dashboard(browser, url)
    cookie = browser.get_cookie("osd_admin")
    assert cookie is not None and cookie["httpOnly"] and cookie["sameSite"] == "Strict"
    browser.refresh()
    wait(browser, lambda: text_of(browser, "now-length"))
    click(browser, "#sign-out")
    wait(browser, browser.find_element(By.ID, "token").is_displayed)
    assert faults(browser) == []


def test_a_session_that_a_restart_ended_is_asked_for_again(browser: webdriver.Chrome, url: str) -> None:
    open_dashboard(browser, url)
    browser.delete_all_cookies()
    let_pass(browser, 6)
    wait(browser, lambda: text_of(browser, "login-error") == "The session has ended: sign in again.")
    assert not find(browser, "#dashboard").is_displayed()
