"""Ranges and domains that make no sense: the page says so, or shows the nearest thing that does, and goes on."""

from __future__ import annotations

import time

import pytest
from selenium import webdriver

from osd.monitor.buckets import Bucket, Series
from tests.browser.driving import choose, click, drawn, find, look, open_history, script, text_of, wait
from tests.kit.fakes import FakeEngineClient

pytestmark = pytest.mark.browser
YEAR_S = 366 * 86_400


@pytest.mark.parametrize(
    ("from_s", "to_s"), [("-1e18", "1e18"), ("Date.now()", "2 * Date.now()"), ("0", "100"), ("-1", "Number.MAX_VALUE")]
)
def test_an_absurd_zoom_is_cut_to_what_the_history_has(
    browser: webdriver.Chrome, url: str, from_s: str, to_s: str
) -> None:
    open_history(browser, url)
    script(browser, f"osd.history.zoomTo({from_s}, {to_s})")
    wait(browser, lambda: script(browser, "return osd.history.served.from_s === osd.history.range().from"))
    shown = script(browser, "return osd.history.range()")
    now_s = time.time()
    assert now_s - YEAR_S - 60 < shown["from"] < shown["to"] < now_s + 120
    assert not find(browser, "#alert").is_displayed()
    click(browser, "#follow")
    wait(browser, lambda: text_of(browser, "range-to") == "now" and drawn(browser)["lines"])


def test_what_is_no_range_is_not_zoomed_to(browser: webdriver.Chrome, url: str) -> None:
    open_history(browser, url)
    for from_s, to_s in (("5", "1"), ("NaN", "3"), ("undefined", "undefined"), ("100", "100.5")):
        script(browser, f"osd.history.zoomTo({from_s}, {to_s})")
    assert script(browser, "return osd.history.isLive")


def test_zooming_out_ends_at_a_year_and_in_at_some_seconds(browser: webdriver.Chrome, url: str) -> None:
    open_history(browser, url)
    for _ in range(30):
        script(browser, "osd.history.move(0, 4)")
    shown = script(browser, "return osd.history.range()")
    assert shown["to"] - shown["from"] <= YEAR_S + 120
    for _ in range(60):
        script(browser, "osd.history.move(0, 0.25)")
    shown = script(browser, "return osd.history.range()")
    assert 10 <= shown["to"] - shown["from"] < 60


def test_a_domain_that_nobody_knows_has_nothing_and_a_wrong_question_is_answered_in_words(
    browser: webdriver.Chrome, url: str, engine: FakeEngineClient
) -> None:
    open_history(browser, url)
    script(browser, "osd.history.domain = 'nowhere'; osd.history.ask()")
    wait(browser, lambda: "nowhere" in text_of(browser, "domain"))
    wait(browser, lambda: text_of(browser, "summary") == "No rounds in this range.")
    assert not find(browser, "#chart-rate").is_displayed()
    choose(browser, "#domain", "all")
    wait(browser, lambda: drawn(browser)["lines"] == ["chat", "code"])
    script(browser, "osd.history.by = ['colour']; osd.history.ask()")
    wait(browser, lambda: "Invalid 'by" in text_of(browser, "alert"))
    assert drawn(browser)["lines"] == ["chat", "code"], "what was shown stays"
    choose(browser, "#by", "drafter version")
    wait(browser, lambda: not find(browser, "#alert").is_displayed() and "v3" in drawn(browser)["lines"])


@pytest.mark.parametrize("width", [1280, 360])
def test_the_longest_names_of_domains_fit(
    browser: webdriver.Chrome, url: str, engine: FakeEngineClient, width: int
) -> None:
    name = "W" * 64
    engine.asked_for = engine.asked_for.with_frozen(name, True)
    engine.buckets.append(
        Bucket(engine.buckets[-1].at_s, {Series(name, "feature", 3, "engine"): {"rounds": 3.0, "proposed": 9.0}})
    )
    look(browser, width=width)
    open_history(browser, url)
    wait(browser, lambda: name in drawn(browser)["lines"])
    choose(browser, "#domain", name)
    wait(browser, lambda: drawn(browser)["lines"] == [name])
    assert script(browser, "return document.documentElement.scrollWidth") <= width
