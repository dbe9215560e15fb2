"""The admin page by axe-core's rules and by those that it has no rule for, wide and narrow, light and dark."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from osd.monitor.alerts import Alert
from osd.records.status import DomainDrift
from tests.browser.driving import click, find, let_pass, look, open_dashboard, script, text_of, wait
from tests.kit.fakes import FakeEngineClient

pytestmark = pytest.mark.browser

WIDTHS = (1280, 360)
ALL_WIDTHS = (1920, 1440, 1280, 768, 360)
RUN_AXE = (
    "const done = arguments[0]; axe.run(document).then((found) => done(found), (error) => done({error: `${error}`}))"
)
SMALL_TARGETS = """
return [...document.querySelectorAll("button, select, input, a")].filter((one) => one.checkVisibility()).map((one) => {
  const box = one.getBoundingClientRect();
  return [one.id || one.textContent, box.width, box.height];
}).filter(([, width, height]) => width < 44 || height < 44)"""
WIDER_THAN_THEIR_BOX = """
return [...document.querySelectorAll("main *")]
  .filter((one) => one.checkVisibility() && !one.closest(".visually-hidden"))
  .filter((one) => one.clientWidth > 0 && one.scrollWidth > one.clientWidth + 1)
  .map((one) => one.outerHTML.slice(0, 80))"""
HEADINGS = """
return [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].filter((one) => one.checkVisibility())
  .map((one) => Number(one.tagName[1]))"""
COUNT_ANNOUNCEMENTS = """
window.announcements = [];
const note = (changes) => announcements.push(...changes.map((one) => one.target.textContent));
for (const live of document.querySelectorAll("[aria-live], [role=status], [role=alert]"))
  new MutationObserver(note).observe(live, { childList: true, characterData: true, subtree: true, attributes: true });
return document.querySelectorAll("[role=status], [role=alert]").length"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_nothing(browser: webdriver.Chrome, url: str, width: int, theme: str) -> None:
    look(browser, width=width, theme=theme)
    browser.get(f"{url}/admin")
    wait(browser, browser.find_element(By.ID, "token").is_displayed)
    assert script(browser, "return matchMedia('(prefers-color-scheme: dark)').matches") == (theme == "dark")
    assert violations(browser) == []
    open_dashboard(browser, url)
    assert violations(browser) == []
    click(browser, "#roll-back")
    assert violations(browser) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_where_everything_is_wrong_and_the_playground_has_answered(
    browser: webdriver.Chrome, url: str, engine: FakeEngineClient, theme: str
) -> None:
    assert engine.service is not None and engine.service.trainer is not None
    drift = {"code": DomainDrift(state="drift", queries=9, before=0.5, recent=0.4)}
    stopped = replace(engine.service.trainer, state="stopped", message="disk full", drift=drift)
    engine.service = replace(engine.service, trainer=stopped, ready=False)
    engine.asked_for = engine.asked_for.with_frozen("code", True).with_draining("engine", True)
    engine.held_alerts = [
        Alert(name="drift", subject="code", severity="warning", state="firing", since_s=time.time(), why="it fell"),
        Alert(name="trainer_stuck", subject="", severity="info", state="pending", since_s=time.time(), why="no step"),
    ]
    look(browser, width=1280, theme=theme)
    open_dashboard(browser, url)
    wait(browser, lambda: text_of(browser, "alert-count") == "▲ 1 firing")
    click(browser, "#ask")
    wait(browser, lambda: find(browser, "#ask").is_enabled() and text_of(browser, "plain-figures"))
    assert violations(browser) == []


def test_axe_finds_nothing_in_a_page_without_anything(
    browser: webdriver.Chrome, url: str, engine: FakeEngineClient
) -> None:
    assert engine.service is not None
    engine.buckets, engine.reports, engine.event_log, engine.manifests = [], [], [], []
    engine.service = replace(engine.service, engine=None, trainer=None, processes={}, restarts={}, ready=False)
    open_dashboard(browser, url)
    assert text_of(browser, "roll-back-note") == "No engine answers."
    assert violations(browser) == []


@pytest.mark.parametrize("width", ALL_WIDTHS)
def test_fits_its_window_and_fingers(browser: webdriver.Chrome, url: str, width: int) -> None:
    look(browser, width=width)
    browser.get(f"{url}/admin")
    wait(browser, browser.find_element(By.ID, "token").is_displayed)
    check_size(browser, width)
    open_dashboard(browser, url)
    check_size(browser, width)
    assert script(browser, WIDER_THAN_THEIR_BOX) == []
    click(browser, "#roll-back")
    check_size(browser, width)


def check_size(browser: webdriver.Chrome, width: int) -> None:
    assert script(browser, "return innerWidth") == width
    assert script(browser, "return document.documentElement.scrollWidth") <= width
    assert script(browser, SMALL_TARGETS) == []


def test_headings_and_header_cells(browser: webdriver.Chrome, url: str) -> None:
    browser.get(f"{url}/admin")
    wait(browser, browser.find_element(By.ID, "token").is_displayed)
    assert script(browser, HEADINGS) == [1, 2]
    open_dashboard(browser, url)
    levels = script(browser, HEADINGS)
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    headers = [one.text for one in browser.find_elements(By.TAG_NAME, "th") if one.is_displayed()]
    assert "Version" in headers and "v3" in headers and "engine" in headers
    assert all(headers)


def test_what_is_listed_is_a_list(browser: webdriver.Chrome, url: str, engine: FakeEngineClient) -> None:
    open_dashboard(browser, url)
    children = "return [...document.querySelectorAll(arguments[0])].map((one) => one.tagName)"
    assert script(browser, children, "#events > *") == ["LI"] * len(engine.event_log)
    assert script(browser, children, "#marks > *") == ["LI"] * 7
    assert not find(browser, "#no-events").is_displayed()
    engine.event_log.clear()
    let_pass(browser, 6)
    wait(browser, find(browser, "#no-events").is_displayed)
    assert script(browser, children, "#events > *") == []


def test_only_changes_are_announced(browser: webdriver.Chrome, url: str, engine: FakeEngineClient) -> None:
    open_dashboard(browser, url)
    assert script(browser, COUNT_ANNOUNCEMENTS) >= 2
    shown = {text_of(browser, "freshness")}

    def polled_twice() -> bool:
        shown.add(text_of(browser, "freshness"))
        return len(shown) > 2

    wait(browser, polled_twice)
    assert script(browser, "return announcements") == []
    assert engine.service is not None
    engine.service = replace(engine.service, ready=False)
    wait(browser, lambda: script(browser, "return announcements") == ["osd is not ready."])


def violations(browser: webdriver.Chrome) -> list[tuple[str, list[str]]]:
    """(rule, elements) of all that axe-core finds wrong."""
    script(browser, (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
    found: Any = browser.execute_async_script(RUN_AXE)
    assert "error" not in found, found["error"]
    assert len(found["passes"]) > 10
    return [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found["violations"]]
