"""Pinning a drafter version on the admin page, and what it says of trials."""

from __future__ import annotations

from dataclasses import replace

import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from osd.records.status import VersionsStatus
from tests.browser.driving import click, content, faults, find, focused_id, open_dashboard, text_of, wait
from tests.kit.fakes import FakeEngineClient

pytestmark = pytest.mark.browser
FIRST_PIN = "#versions tr:last-child button[data-act=pin]"


def judge(engine: FakeEngineClient, versions: VersionsStatus | None) -> None:
    assert engine.service is not None
    engine.service = replace(engine.service, versions=versions)


def test_a_pin_says_what_will_happen_and_is_kept_in_the_audit_log(
    browser: webdriver.Chrome, url: str, engine: FakeEngineClient
) -> None:
    open_dashboard(browser, url)
    assert find(browser, FIRST_PIN).text == "Pin v1"
    assert not find(browser, "#unpin").is_displayed()
    click(browser, FIRST_PIN)
    assert text_of(browser, "confirm-title") == text_of(browser, "confirm-yes") + "?" == "Pin version 1?"
    assert "whatever is published, also over restarts, until it is unpinned" in text_of(browser, "confirm-text")
    click(browser, "#confirm-no")
    assert engine.calls == []
    click(browser, FIRST_PIN)
    assert focused_id(browser) == "reason"
    browser.switch_to.active_element.send_keys("a demonstration" + Keys.ENTER)
    wait(browser, lambda: engine.calls == [("pin", 1, "a demonstration")])
    wait(browser, lambda: content(browser, "#announcement") == "Version 1 is pinned.")
    wait(browser, lambda: "pin version 1: a demonstration" in text_of(browser, "events"))
    assert engine.event_log[-1].kind == "audit"
    judge(engine, VersionsStatus(confirmed=1, pinned="a demonstration"))
    wait(browser, lambda: text_of(browser, "trial").startswith("Version 1 is pinned: a demonstration."))
    assert find(browser, "#versions tr:last-child").text.startswith("v1 pinned")
    assert browser.find_elements("css selector", FIRST_PIN) == []
    click(browser, "#unpin")
    assert "goes on trial" in text_of(browser, "confirm-text")
    click(browser, "#confirm-yes")
    wait(browser, lambda: engine.calls[-1] == ("unpin",))
    judge(engine, VersionsStatus(confirmed=1))
    wait(browser, lambda: not find(browser, "#unpin").is_displayed())
    assert text_of(browser, "trial") == "No trial: every engine may serve version 1."
    assert faults(browser) == []


def test_the_version_that_serves_can_be_pinned_and_one_that_was_rolled_back_cannot(
    browser: webdriver.Chrome, url: str
) -> None:
    open_dashboard(browser, url)
    rows = browser.find_elements("css selector", "#versions tr")
    assert [[one.text for one in row.find_elements("css selector", "button")] for row in rows] == [
        ["Pin v3"],
        [],
        ["Serve v1", "Pin v1"],
    ]


def test_serving_another_version_says_that_the_pin_ends(
    browser: webdriver.Chrome, url: str, engine: FakeEngineClient
) -> None:
    judge(engine, VersionsStatus(confirmed=3, pinned="stay"))
    open_dashboard(browser, url)
    wait(browser, find(browser, "#unpin").is_displayed)
    click(browser, "#roll-back")
    assert text_of(browser, "confirm-text").endswith("The pin ends.")


def test_a_trial_is_told_with_its_evidence(browser: webdriver.Chrome, url: str, engine: FakeEngineClient) -> None:
    open_dashboard(browser, url)
    assert text_of(browser, "trial") == (
        "Version 3 is on trial on engine. First proposed token accepted: 52.0% of 1,200 rounds; "
        "before, 45.0% of 900 rounds. Version 1 is confirmed."
    )
    assert "feature v3 (canary)" in text_of(browser, "engines")
    judge(engine, VersionsStatus(confirmed=3))
    wait(browser, lambda: text_of(browser, "trial") == "No trial: every engine may serve version 3.")
    assert "canary" not in text_of(browser, "engines")
    judge(engine, None)
    wait(browser, lambda: text_of(browser, "trial") == "The supervisor does not answer.")
