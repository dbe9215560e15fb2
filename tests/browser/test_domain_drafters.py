"""Domains' own drafters on the admin page: which serve, on which figures, their versions, and the levers on them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from osd.monitor.buckets import Bucket, Series
from osd.records.status import DomainTraining, ServedCounts, VersionsStatus
from tests.browser.driving import choose, click, content, faults, find, open_dashboard, text_of, wait
from tests.kit.fakes import FakeEngineClient

pytestmark = pytest.mark.browser
_FIGURES = {"rounds": 40.0, "proposed": 120.0, "accepted": 60.0, "committed": 100.0}


@pytest.fixture
def split(engine: FakeEngineClient) -> FakeEngineClient:
    """`sql` has a drafter of its own, `mail` had one, one of `code` is being trained."""
    assert engine.service is not None and engine.service.engine is not None and engine.service.trainer is not None
    against = {"length": 2.314, "base_length": 2.1, "gain_low": 0.05, "gain_high": 0.3}
    trained = {
        "sql": DomainTraining(
            state="training", steps=40, records=96, published_version=3, gate={}, against_base=against
        ),
        "code": DomainTraining(
            state="training", steps=7, records=80, published_version=0, gate={"gain_low": -0.02, "gain_high": 0.125}
        ),
    }
    served = (
        *engine.service.engine.served,
        ServedCounts(domain="sql", drafter="feature.sql", version=3, figures=_FIGURES),
    )
    engine.buckets += [
        Bucket(engine.buckets[-1].at_s, {Series(domain, "feature", 3, "engine"): _FIGURES})
        for domain in ("sql", "mail")
    ]
    engine.service = replace(
        engine.service,
        engine=replace(engine.service.engine, served=served),
        trainer=replace(engine.service.trainer, domains=trained),
        domains={
            "sql": VersionsStatus(confirmed=3, roll_backs=1),
            "mail": VersionsStatus(confirmed=0, merged="gain between -0.020 and +0.010"),
        },
    )
    return engine


def _row(browser: webdriver.Chrome, domain: str) -> str:
    rows = browser.find_elements("css selector", "#domains tr")
    return next(row.text for row in rows if row.text.startswith(domain))


@pytest.mark.usefixtures("split")
def test_every_domain_says_which_drafter_serves_it_and_why(browser: webdriver.Chrome, url: str) -> None:
    open_dashboard(browser, url)
    wait(browser, lambda: "chat" in text_of(browser, "domains"))
    assert "its own, v3: length 2.31, the base drafter 2.10, gain between 0.050 and 0.300" in _row(browser, "sql")
    assert "the base drafter again: gain between -0.020 and +0.010" in _row(browser, "mail")
    code = "the base drafter; its own has learnt from 80 records in 7 steps, gain between -0.020 and 0.125"
    assert code in _row(browser, "code")
    assert "the base drafter by goodput" in _row(browser, "chat").replace("\n", " ")
    assert faults(browser) == []


def test_a_domains_versions_are_served_and_pinned_in_their_domain(
    browser: webdriver.Chrome, url: str, split: FakeEngineClient
) -> None:
    open_dashboard(browser, url)
    click(browser, "#domains button[data-act=versions][data-domain=sql]")
    wait(browser, lambda: len(browser.find_elements("css selector", "#versions tr")) == 4)
    assert ("versions", "sql") in split.calls
    newest, *_, base = (row.text for row in browser.find_elements("css selector", "#versions tr"))
    assert newest.startswith("v3 serving") and "2.50" in newest and "50.0%" in newest
    assert base.startswith("the base drafter idle")
    assert text_of(browser, "trial") == "No trial: every engine may serve version 3."
    click(browser, "#versions tr:last-child button[data-act=serve]")
    assert text_of(browser, "confirm-title") == "Serve the base drafter in sql?"
    browser.switch_to.active_element.send_keys("one is enough" + Keys.ENTER)
    wait(browser, lambda: ("roll_back", 0, "one is enough", "sql") in split.calls)
    wait(browser, lambda: content(browser, "#announcement") == "The base drafter in sql is going to serve.")
    click(browser, "#versions tr:first-child button[data-act=pin]")
    assert text_of(browser, "confirm-title") == "Pin version 3 in sql?"
    browser.switch_to.active_element.send_keys("stay" + Keys.ENTER)
    wait(browser, lambda: ("pin", 3, "stay", "sql") in split.calls)
    assert split.service is not None
    split.service = replace(split.service, domains={"sql": VersionsStatus(confirmed=3, pinned="stay")})
    wait(browser, find(browser, "#unpin").is_displayed)
    assert "v3 is pinned: stay" in _row(browser, "sql")
    click(browser, "#unpin")
    click(browser, "#confirm-yes")
    wait(browser, lambda: ("unpin", "sql") in split.calls)
    choose(browser, "#versions-of", "all traffic")
    wait(browser, lambda: len(browser.find_elements("css selector", "#versions tr")) == 3)
    assert text_of(browser, "trial").startswith("Version 3 is on trial on engine.")
    assert faults(browser) == []


def test_without_drafters_of_domains_there_is_nothing_to_choose(
    browser: webdriver.Chrome, url: str, engine: FakeEngineClient
) -> None:
    assert engine.service is not None and engine.service.trainer is not None
    trainer = replace(engine.service.trainer, domains={})
    engine.service = replace(engine.service, domains={}, trainer=trainer)
    open_dashboard(browser, url)
    assert not find(browser, "#versions-of-label").is_displayed()
    assert browser.find_elements("css selector", "#domains button[data-act=versions]") == []
