"""The admin page in a real Chromium, over a fake engine."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from osd.config import load_config
from osd.types import AcceptancePoint, Event
from serving.app import create_app
from tests.fakes import FakeCodec, FakeEngineClient, fake_manifest, fake_service
from tests.http_server import serve

pytestmark = pytest.mark.browser

TOKEN = "a-long-admin-token"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,800",
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium here: apt-get install -y chromium chromium-driver")
    options = Options()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def browser(chromium: webdriver.Chrome) -> Iterator[webdriver.Chrome]:
    """Signed out, and far from any server's page, at the end of each test."""
    yield chromium
    chromium.delete_all_cookies()
    chromium.get("about:blank")


@pytest.fixture
def engine() -> FakeEngineClient:
    """300 queries that began with drafter version 1; 2 was worse and rolled back, 3 is better."""
    random.seed(7)
    now_s = time.time()
    takeovers = {0: 1, 90: 2, 120: 1, 190: 3}
    acceptance = {1: 0.22, 2: 0.12, 3: 0.41}
    points, version = [], 1
    for query in range(300):
        version = takeovers.get(query, version)
        rounds = random.randint(10, 30)
        accepted = sum(random.random() < acceptance[version] for _ in range(3 * rounds))
        point = AcceptancePoint(
            query=query,
            at_s=now_s - 2 * (300 - query),
            domain="code" if query % 3 else "chat",
            drafter_version=version,
            rounds=rounds,
            proposed=3 * rounds,
            accepted=accepted,
            committed=accepted + rounds,
            output_tokens=accepted + rounds + 1,
            decode_ms=30.0 * rounds,
        )
        points.append(point)
    log = [
        Event(at_s=now_s - 425, kind="publish", message="drafter version 2 published: 0.251 vs 0.244"),
        Event(at_s=now_s - 420.5, kind="swap", message="drafter version 1 -> 2 in 3.1 ms"),
        Event(at_s=now_s - 361, kind="roll_back", message="drafter version 2 -> 1: accepted less, z = 5.2"),
        Event(at_s=now_s - 300, kind="drift", message="domain code: acceptance fell from 0.24 to 0.19"),
        Event(at_s=now_s - 221, kind="publish", message="drafter version 3 published: 0.310 vs 0.240"),
        Event(at_s=now_s - 220.5, kind="swap", message="drafter version 1 -> 3 in 2.9 ms"),
    ]
    return FakeEngineClient(
        service=fake_service(),
        points=points,
        event_log=log,
        manifests=[fake_manifest(1), fake_manifest(2, rolled_back="accepted less, z = 5.2"), fake_manifest(3)],
    )


@pytest.fixture
def url(engine: FakeEngineClient) -> Iterator[str]:
    digest = sha256(TOKEN.encode()).hexdigest()
    with serve(create_app(load_config(), engine, FakeCodec(), admin_token_sha256=digest)) as base_url:
        yield base_url


def text_of(browser: webdriver.Chrome, element_id: str) -> str:
    return browser.find_element(By.ID, element_id).text


def wait(browser: webdriver.Chrome, condition: Callable[[], object]) -> None:
    WebDriverWait(browser, 15).until(lambda _: condition())


def sign_in(browser: webdriver.Chrome, url: str, token: str = TOKEN) -> None:
    browser.get(f"{url}/admin")
    wait(browser, browser.find_element(By.ID, "token").is_displayed)
    browser.find_element(By.ID, "token").send_keys(token)
    browser.find_element(By.CSS_SELECTOR, "#login button").click()


def click(browser: webdriver.Chrome, selector: str) -> None:
    browser.find_element(By.CSS_SELECTOR, selector).click()


def test_shows_figures_chart_versions_and_events(browser: webdriver.Chrome, url: str, engine: FakeEngineClient) -> None:
    sign_in(browser, url)
    wait(browser, lambda: text_of(browser, "now-length"))
    newest = engine.points[-50:]
    length = sum(point.committed for point in newest) / sum(point.rounds for point in newest)
    rate = sum(point.accepted for point in newest) / sum(point.proposed for point in newest)
    assert text_of(browser, "now-length") == f"{length:.2f}"
    assert text_of(browser, "now-rate") == f"{rate * 100:.1f}%"
    assert text_of(browser, "now-version") == "v3"
    marks = browser.find_elements(By.CSS_SELECTOR, "#chart text.swap, #chart text.roll-back")
    assert [(mark.get_attribute("class"), mark.text) for mark in marks] == [
        ("swap", "v2"),
        ("roll-back", "v1"),
        ("swap", "v3"),
    ]
    assert len(browser.find_elements(By.CSS_SELECTOR, "#chart path.line")) == 2
    rows = [one.text for one in browser.find_elements(By.CSS_SELECTOR, "#versions tr")]
    assert rows[0].startswith("v3 serving") and "0.310 vs 0.240" in rows[0]
    assert rows[1].startswith("v2 rolled back")
    assert "drift" in text_of(browser, "events")
    assert "980 MB" in text_of(browser, "processes")
    console = browser.get_log("browser")  # type: ignore[no-untyped-call]  # selenium left it untyped
    faults = [one for one in console if one["level"] == "SEVERE" and "401 (Unauthorized)" not in one["message"]]
    assert faults == []  # no script error, and nothing that the page's own policy had to block


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


def test_levers_ask_first(browser: webdriver.Chrome, url: str, engine: FakeEngineClient) -> None:
    sign_in(browser, url)
    wait(browser, lambda: text_of(browser, "now-length"))
    click(browser, "#pause")
    click(browser, "#confirm button[value=no]")
    assert engine.calls == []
    click(browser, "#pause")
    click(browser, "#confirm-yes")
    wait(browser, lambda: engine.calls == [("pause",)])
    click(browser, "#versions tr:last-child button")
    browser.find_element(By.ID, "reason").send_keys("was better")
    click(browser, "#confirm-yes")
    wait(browser, lambda: engine.calls[-1] == ("roll_back", 1, "was better"))


def test_refused_lever_says_why(browser: webdriver.Chrome, url: str) -> None:
    sign_in(browser, url)
    wait(browser, lambda: text_of(browser, "now-length"))
    click(browser, "#roll-back")
    browser.find_element(By.ID, "reason").send_keys("testing")
    click(browser, "#confirm-yes")
    wait(browser, lambda: "there is no drafter version None" in text_of(browser, "alert"))


def test_says_when_the_server_is_gone(browser: webdriver.Chrome, engine: FakeEngineClient) -> None:
    digest = sha256(TOKEN.encode()).hexdigest()
    with serve(create_app(load_config(), engine, FakeCodec(), admin_token_sha256=digest)) as url:
        sign_in(browser, url)
        wait(browser, lambda: text_of(browser, "now-length"))
    wait(browser, lambda: "No answer from the server" in text_of(browser, "alert"))
    assert text_of(browser, "now-version") == "v3"  # what was known stays, marked as old


def test_session_survives_a_reload_and_ends_on_sign_out(browser: webdriver.Chrome, url: str) -> None:
    sign_in(browser, url)
    wait(browser, lambda: text_of(browser, "now-length"))
    cookie = browser.get_cookie("osd_admin")
    assert cookie is not None and cookie["httpOnly"] and cookie["sameSite"] == "Strict"
    browser.refresh()
    wait(browser, lambda: text_of(browser, "now-length"))
    click(browser, "#sign-out")
    wait(browser, browser.find_element(By.ID, "token").is_displayed)
