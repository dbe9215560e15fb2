"""The admin page left open for a day, with wrong clocks, and with figures that are no numbers."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from osd.records.events import Event
from osd.records.status import DomainDrift
from tests.browser.driving import drawn, find, open_history, script, text_of, wait
from tests.kit.fakes import FakeEngineClient

pytestmark = pytest.mark.browser

REMEMBER_STREAMS = """
const Original = EventSource;
globalThis.streams = [];
globalThis.EventSource = class extends Original {
  constructor(...given) {
    super(...given);
    streams.push(this);
    this.addEventListener("snapshot", (event) => { streams.last = event.data; });
  }
}"""
DAY_OF_SNAPSHOTS = """
const [number, done] = arguments, [stream] = streams.slice(-1);
let at = 0;
(function some() {
  for (const end = Math.min(at + 50, number); at < end; at++)
    stream.dispatchEvent(new MessageEvent("snapshot", { data: streams.last }));
  if (at < number) setTimeout(some); else done(document.querySelectorAll("*").length);
})()"""


def held_bytes(browser: webdriver.Chrome) -> int:
    """What the page's scripts hold, garbage collected."""
    browser.execute_cdp_cmd("HeapProfiler.collectGarbage", {})
    used: int = browser.execute_cdp_cmd("Runtime.getHeapUsage", {})["usedSize"]
    return used


def test_a_page_left_open_grows_neither_in_elements_nor_in_memory(browser: webdriver.Chrome, url: str) -> None:
    added = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": REMEMBER_STREAMS})
    try:
        open_history(browser, url)
        wait(browser, lambda: script(browser, "return Boolean(streams.last)"))
        before = browser.execute_async_script(DAY_OF_SNAPSHOTS, 50), held_bytes(browser)
        after = browser.execute_async_script(DAY_OF_SNAPSHOTS, 1000), held_bytes(browser)
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    assert after[0] <= before[0] + 20
    assert after[1] < before[1] + 1_000_000, "a kilobyte kept of each snapshot would be as much"


def test_a_page_that_slept_for_a_day_shows_the_present_again(
    browser: webdriver.Chrome, url: str, engine: FakeEngineClient
) -> None:
    """A laptop that was closed: the browser's clock jumps, and what the page knew is old."""
    open_history(browser, url)
    script(browser, "const now = Date.now, at = now(); Date.now = () => now() + 86_400_000")
    engine.event_log.append(Event(at_s=time.time(), kind="swap", message="drafter version 3 -> 4, after the night"))
    wait(browser, lambda: "after the night" in text_of(browser, "events"))
    wait(browser, lambda: not script(browser, "return document.getElementById('dashboard').matches('.stale')"))
    wait(browser, lambda: abs(drawn(browser)["to"] - time.time()) < 60)
    assert text_of(browser, "range-to") == "now" and text_of(browser, "ready") == "ready"


def test_a_page_left_open_holds_no_more_than_its_bounds(
    browser: webdriver.Chrome, url: str, engine: FakeEngineClient
) -> None:
    open_history(browser, url)
    now_s = time.time()
    engine.event_log += [
        Event(at_s=now_s - 300 + at / 10, kind="refuse", message=f"candidate {at}") for at in range(2000)
    ]
    wait(browser, lambda: "candidate 1999" in text_of(browser, "events"))
    assert len(browser.find_elements(By.CSS_SELECTOR, "#events li")) <= 200
    assert len(browser.find_elements(By.CSS_SELECTOR, "#gate tr")) <= 30


def test_a_browser_whose_clock_is_wrong_shows_the_same(browser: webdriver.Chrome, url: str) -> None:
    """What is shown is by the server's clock."""
    behind = "const now = Date.now; Date.now = () => now() - 7_200_000"
    added = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": behind})
    try:
        open_history(browser, url)
        assert time.time() - drawn(browser)["to"] < 600
        assert drawn(browser)["points"] > 100
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_a_drafter_that_diverged_does_not_break_the_page(
    browser: webdriver.Chrome, url: str, engine: FakeEngineClient
) -> None:
    """Its figures are no numbers, just when somebody looks."""
    assert engine.service is not None and engine.service.trainer is not None
    nan = float("nan")
    gate = {
        "candidate": nan,
        "serving": 0.24,
        "length": nan,
        "serving_length": 1.71,
        "gain_low": nan,
        "gain_high": nan,
        "published": 0.0,
    }
    trainer = replace(engine.service.trainer, loss=nan, learning_rate=nan, gate=gate)
    drift = {"code": DomainDrift(state="drift", queries=9, before=nan, recent=nan)}
    engine.service = replace(engine.service, trainer=replace(trainer, drift=drift))
    engine.event_log.append(Event(at_s=time.time() - 5, kind="refuse", message="candidate diverged", data=gate))
    open_history(browser, url)
    wait(browser, lambda: "candidate diverged" in text_of(browser, "events"))
    assert "– vs 1.710, refused" in text_of(browser, "trainer-figures")
    assert "not better" in find(browser, "#gate tr").text and "◆ drift" in text_of(browser, "drift")
    assert text_of(browser, "ready") == "ready"
