"""History, events and playground in a real Chromium, over a fake engine."""

from __future__ import annotations

import json
import re
import time
from contextlib import closing
from dataclasses import replace
from socket import create_server

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from osd.monitor.buckets import MAX_POINTS, TIERS, Bucket, Series
from osd.records.events import Event, EventKind
from osd.records.status import StreamStatus, VersionsStatus
from tests.browser.conftest import level_samples, served_figures
from tests.browser.driving import (
    TOKEN,
    choose,
    click,
    drawn,
    faults,
    find,
    focused_id,
    let_pass,
    look,
    open_dashboard,
    open_history,
    page_app,
    script,
    text_of,
    wait,
)
from tests.kit.fakes import FakeEngineClient
from tests.kit.http_server import serve

pytestmark = pytest.mark.browser

PAINTED_MS = """
const done = arguments[0];
requestAnimationFrame(() => {
  const began = performance.now();
  osd.charts.render();
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
})"""
"""From one frame to after the next one: all charts and tables are computed, laid out and painted between the two."""
MOST_MS = 100
UNITS = {
    "rate": "%", "length": "tokens", "speed": "tokens a second", "gain": "×", "replay": "B", "lag": "Outcomes",
    "trained": "%", "busy": "%", "paused": "%",
}  # fmt: skip
WRITTEN = """
const [chart, done] = arguments, pen = CanvasRenderingContext2D.prototype, write = pen.fillText, written = [];
pen.fillText = function (text, ...where) { written.push(text); write.call(this, text, ...where); };
osd.charts.charts[chart].repaint();
setTimeout(() => { pen.fillText = write; done(written); })"""
"""What a chart writes on its canvas: its axes' figures and times, and the letters of marks."""


def test_dragging_zooms_keys_move_and_the_way_back_to_now(browser: webdriver.Chrome, url: str) -> None:
    open_history(browser, url)
    before = drawn(browser)
    over = find(browser, "#chart-rate .u-over")
    width = over.size["width"]
    ActionChains(browser).move_to_element_with_offset(over, int(width * 0.2), 0).click_and_hold().move_by_offset(
        int(width * 0.2), 0
    ).release().perform()
    wait(browser, find(browser, "#follow").is_displayed)
    wait(browser, lambda: drawn(browser)["to"] - drawn(browser)["from"] < (before["to"] - before["from"]) / 2)
    zoomed = drawn(browser)
    assert before["from"] < zoomed["from"] < zoomed["to"] <= before["to"] + 60
    plot = find(browser, "#chart-rate .plot")
    script(browser, "arguments[0].focus()", plot)
    plot.send_keys(Keys.ARROW_LEFT)
    wait(browser, lambda: drawn(browser)["from"] < zoomed["from"])
    plot.send_keys("-")
    wait(browser, lambda: drawn(browser)["to"] - drawn(browser)["from"] > 1.5 * (zoomed["to"] - zoomed["from"]))
    click(browser, "#follow")
    wait(browser, lambda: text_of(browser, "range-to") == "now")
    assert faults(browser) == []


def test_lines_are_by_what_is_chosen_and_told_apart_without_colour(browser: webdriver.Chrome, url: str) -> None:
    open_history(browser, url)
    choose(browser, "#by", "drafter version")
    wait(browser, lambda: drawn(browser)["lines"] == ["v1", "v2", "v3"])
    choose(browser, "#by", "domain and version")
    wait(browser, lambda: "code · v3" in drawn(browser)["lines"])
    choose(browser, "#domain", "chat")
    wait(browser, lambda: drawn(browser)["lines"] == ["chat · v1", "chat · v2", "chat · v3"])
    names = [one.text for one in browser.find_elements(By.CSS_SELECTOR, "#chart-rate .key span:not(.value)")]
    assert names == ["chat · v1", "chat · v2", "chat · v3"]
    key = find(browser, "#chart-rate .key")
    key.click()
    assert key.get_attribute("aria-pressed") == "false"


def test_rounds_of_no_drafter_and_of_no_version_are_called_so(
    browser: webdriver.Chrome, url: str, engine: FakeEngineClient
) -> None:
    rows = {
        Series("code", "", 0, "engine"): {"rounds": 10.0, "committed": 10.0, "length_0": 10.0},
        Series("code", "suffix", 0, "engine"): {"rounds": 30.0, "proposed": 90.0, "accepted": 60.0, "committed": 90.0},
    }
    engine.buckets = [Bucket(TIERS[0].start_of(time.time() - 60), rows)]
    open_history(browser, url)
    series = "return [...document.querySelectorAll('#summary th')].map((one) => one.textContent)"
    choose(browser, "#by", "drafter")
    wait(browser, lambda: script(browser, series) == ["plain", "suffix"])
    choose(browser, "#by", "drafter version")
    wait(browser, lambda: script(browser, series) == ["no version"])
    arms = [one.text for one in browser.find_elements(By.CSS_SELECTOR, "#arms tr")]
    assert arms == ["suffix 75.0%", "none: plain decoding 25.0%"]


def test_buttons_move_the_time_axis_and_zoom_it(browser: webdriver.Chrome, url: str) -> None:
    open_history(browser, url)

    def pressed(button: str) -> dict[str, float]:
        before = script(browser, "return osd.history.range()")
        click(browser, button)
        wait(browser, lambda: script(browser, "return osd.history.range()") != before)
        found: dict[str, float] = script(browser, "return osd.history.range()")
        wait(browser, lambda: abs(drawn(browser)["from"] - found["from"]) < 1)
        return found

    earlier = pressed("#earlier")
    assert find(browser, "#follow").is_displayed() and earlier["to"] < time.time() - 1000
    assert pressed("#later")["to"] == pytest.approx(time.time(), abs=120)
    closer = pressed("#closer")
    assert closer["to"] - closer["from"] == pytest.approx(1800, abs=120)
    wider = pressed("#wider")
    assert wider["to"] - wider["from"] == pytest.approx(3600, abs=240)


GIVEN = """
const now = osd.history.nowS, newest = now - arguments[0];
const series = [{ of: { domain: "code" }, figures: { committed: [7200, 800] } }];
osd.history.served = { ...osd.history.served, step_s: 3600, times_s: [newest - 3600, newest], series, drafters: {} };
osd.charts.render();
const values = [...document.querySelectorAll("#chart-speed .value")].map((one) => one.textContent);
return [osd.charts.charts.speed.drawn.points, ...values];"""


def test_a_newest_point_that_is_not_over_counts_for_the_time_that_has_passed(
    browser: webdriver.Chrome, url: str
) -> None:
    """With points of an hour, what was served in the last minutes is seen, at its speed."""
    open_history(browser, url)
    assert script(browser, GIVEN, 400) == [2, "2"], "800 tokens in 400 s"
    assert script(browser, GIVEN, 10) == [1, "2"], "too short: the point before is the newest"


NUM_QUERIES = """
const counts = osd.history.served.series.flatMap((one) => one.figures.queries ?? []);
return counts.reduce((sum, count) => sum + (count ?? 0), 0)"""


@pytest.mark.parametrize("num_domains", [1, 8])
def test_ten_thousand_queries_are_drawn_quickly_and_as_a_bounded_number_of_points(
    browser: webdriver.Chrome, url: str, engine: FakeEngineClient, num_domains: int
) -> None:
    """All charts: 4 with a line for each domain, 7 of the trainer and the engine."""
    share = 1 / num_domains
    served = {name: share * count for name, count in {**served_figures(0.4), "queries": 14.0}.items()}
    levels = level_samples(loss=1.0, learning_rate=1e-4, replay_bytes=1e6, stream_lag=2.0)
    rows = {Series(f"domain {number}", "feature", 3, "engine"): served for number in range(num_domains)}
    rows |= {Series(engine="trainer"): {**levels, "trained_ms": 900.0}}
    rows |= {Series(engine="engine"): {**level_samples(utilisation=0.5), "paused_ms": 10.0}}
    now_s = time.time()
    engine.buckets = [Bucket(TIERS[0].start_of(now_s - 5 * number), rows) for number in range(715, 0, -1)]
    open_history(browser, url)
    wait(browser, lambda: script(browser, NUM_QUERIES) == pytest.approx(14 * 715))
    assert 500 < drawn(browser)["points"] <= MAX_POINTS and len(drawn(browser)["lines"]) == num_domains
    assert script(browser, "return Object.values(osd.charts.charts).every((one) => !one.box.hidden)")
    # Other work on this machine delays a frame, but not every frame.
    wait(browser, lambda: browser.execute_async_script(PAINTED_MS) < MOST_MS)


def test_events_filter_and_export_what_is_shown(browser: webdriver.Chrome, url: str, engine: FakeEngineClient) -> None:
    engine.event_log.append(Event(at_s=time.time() - 5, kind="error", message="disk full on node-1"))
    open_history(browser, url)
    wait(browser, lambda: "disk full" in text_of(browser, "events"))
    choose(browser, "#event-kind", "publish")
    wait(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, "#events li")) == 2)
    choose(browser, "#event-kind", "all")
    find(browser, "#event-text").send_keys("DISK")
    wait(browser, lambda: [one.text for one in browser.find_elements(By.CSS_SELECTOR, "#events .message")] == [
        "disk full on node-1"
    ])  # fmt: skip
    fetched = (
        "const done = arguments[1]; fetch(document.getElementById(arguments[0]).href).then((a) => a.text()).then(done)"
    )
    as_json = browser.execute_async_script(fetched, "export-json")
    assert [one["message"] for one in json.loads(as_json)] == ["disk full on node-1"]
    as_csv = browser.execute_async_script(fetched, "export-csv")
    assert as_csv.splitlines()[0] == "time,kind,message,data" and "disk full on node-1" in as_csv
    find(browser, "#event-text").send_keys("xyz")
    wait(browser, lambda: text_of(browser, "no-events") == "No event matches.")


def test_what_happens_appears_by_itself_also_after_a_restart(
    browser: webdriver.Chrome, engine: FakeEngineClient
) -> None:
    with closing(create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    with serve(page_app(engine), port=port) as url:
        open_history(browser, url)
        engine.event_log.append(Event(at_s=time.time(), kind="swap", message="drafter version 3 -> 4"))
        wait(browser, lambda: "drafter version 3 -> 4" in text_of(browser, "events"))
    let_pass(browser, 8)
    wait(browser, lambda: "No answer from the server" in text_of(browser, "alert"))
    with serve(page_app(engine), port=port):  # sessions are gone with the process
        wait(browser, find(browser, "#token").is_displayed)
        find(browser, "#token").send_keys(TOKEN)
        click(browser, "#login button")
        wait(browser, lambda: text_of(browser, "ready") == "ready")
        assert not find(browser, "#alert").is_displayed()


def test_small_figures_have_their_own_unit(browser: webdriver.Chrome, url: str) -> None:
    """A replay of 2.4 kB is not drawn as 0 MB, neither in the legend nor on the axis."""
    open_history(browser, url)
    value = "return document.querySelector('#chart-replay .value').textContent"
    wait(browser, lambda: script(browser, value) == "2.4 kB")
    figures = "import('./admin/figures.js').then((module) => arguments[1](arguments[0].map(module.bytes)))"
    sizes = [0, 999, 999.6, 48_300_000, 980_000_000, 999_999_999, 4e12, 5e15]
    assert browser.execute_async_script(figures, sizes) == [
        "0 B", "999 B", "1 kB", "48.3 MB", "980 MB", "1 GB", "4 TB", "5000 TB",
    ]  # fmt: skip


def test_every_axis_has_its_unit(browser: webdriver.Chrome, url: str) -> None:
    """Beside each figure or, of counts, in the title; losses and learning rates have none."""
    open_history(browser, url)
    assert {*UNITS, "loss", "learning"} == set(script(browser, "return Object.keys(osd.charts.charts)"))
    for chart, unit in UNITS.items():
        if not find(browser, f"#chart-{chart}").is_displayed():
            continue
        ticks = [text for text in browser.execute_async_script(WRITTEN, chart) if re.fullmatch(r"[\d.]+\D*", text)]
        title = find(browser, f"#chart-{chart} h3").text
        assert len(ticks) >= 2 and (unit in title or all(text.endswith(unit) for text in ticks)), (title, ticks)


def test_what_training_takes_and_costs_is_shown(browser: webdriver.Chrome, url: str, engine: FakeEngineClient) -> None:
    open_history(browser, url)
    assert text_of(browser, "spare").splitlines() == [
        "Time trained", "31.0%", "Taken from serving, at most", "7.2%", "Asked of busy engines now", "10.0%",
        "Engines on its device", "engine", "Busiest of them", "80.0%",
    ]  # fmt: skip
    trained = "return document.querySelector('#chart-trained .value').textContent"
    assert script(browser, trained) == "31.0%"
    assert engine.service is not None
    engine.service = replace(engine.service, spare=None)
    wait(browser, lambda: text_of(browser, "spare-note") == "The distiller does not report.")
    assert text_of(browser, "spare") == ""
    late = {Series(engine="trainer"): {"trained_ms": 12_000.0}}
    engine.buckets = [Bucket(TIERS[0].start_of(time.time() - ago_s), late) for ago_s in (20, 15, 10)]
    let_pass(browser, 6)
    wait(browser, lambda: script(browser, trained) == "100.0%")


def test_what_became_of_outcomes_is_shown(browser: webdriver.Chrome, url: str, engine: FakeEngineClient) -> None:
    open_history(browser, url)
    assert text_of(browser, "outcomes").splitlines() == ["Recorded", "–"]
    status = engine.service
    assert status is not None and status.engine is not None
    counts = {"recorded": 1200.0, "spilled": 40.0, "replayed": 12.0, "dropped": 3.0, "left_out": 7.0}
    counters = {**status.engine.counters, **{f"outcomes_{name}": count for name, count in counts.items()}}
    stream = StreamStatus(bytes_per_s=2_500_000, record_share=0.5)
    engine.service = replace(status, engine=replace(status.engine, counters=counters), stream=stream)
    wait(browser, lambda: "1,200" in text_of(browser, "outcomes"))
    assert text_of(browser, "outcomes").splitlines() == [
        "Recorded", "1,200", "In the spill file", "28", "Lost", "3", "Left out, near the stream's limit", "7",
        "Share recorded now", "50.0%", "Written to the stream", "2.5 MB/s",
    ]  # fmt: skip


LETTERS = """
globalThis.letters = new Set();
const draw = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, ...place) {
  if (text.length === 1 && isNaN(text)) letters.add(text);
  return draw.call(this, text, ...place);
}"""


def test_every_kind_of_mark_is_drawn_over_the_charts_unless_it_is_switched_off(
    browser: webdriver.Chrome, url: str, engine: FakeEngineClient
) -> None:
    kinds: list[EventKind] = ["drift", "publish", "refuse", "swap", "roll_back", "merge", "restart"]
    now_s = time.time()
    engine.event_log = [
        Event(at_s=now_s - 750 + 100 * at, kind=kind, message=f"a {kind}") for at, kind in enumerate(kinds)
    ]
    added = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": LETTERS})
    try:
        open_history(browser, url)
        choose(browser, "#range", "15 minutes")
        wait(browser, lambda: set(script(browser, "return [...letters]")) == set("DP×SRM↻"))
        find(browser, "#marks li:nth-child(5) button").click()
        script(browser, "letters.clear(); osd.charts.render()")
        wait(browser, lambda: set(script(browser, "return [...letters]")) == set("DP×SR↻"))
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


PLACES = LETTERS.replace("letters.add(text)", "letters.add(`${text} ${place}`)")


def test_marks_that_crowd_have_their_letters_in_lanes_and_a_tooltip(
    browser: webdriver.Chrome, url: str, engine: FakeEngineClient
) -> None:
    """A roll back is not hidden by what the gate refused around it."""
    now_s = time.time()
    refused = [Event(at_s=now_s - at_s, kind="refuse", message="not better") for at_s in range(900, 200, -10)]
    moves: tuple[EventKind, ...] = ("publish", "swap", "roll_back")
    moved = [Event(at_s=now_s - 360 + at, kind=kind, message=f"a {kind}") for at, kind in enumerate(moves)]
    engine.event_log = [*refused, *moved]
    added = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": PLACES})
    try:
        open_history(browser, url)
        choose(browser, "#range", "1 hour")
        script(browser, "letters.clear(); osd.charts.charts.rate.repaint()")
        wait(browser, lambda: {str(one)[0] for one in script(browser, "return [...letters]")} == set("×PSR"))
        places = [one.split(" ") for one in script(browser, "return [...letters]")]
        heights = {letter: float(place.split(",")[1]) for letter, place in places}
        assert len({heights[letter] for letter in "PSR"}) == 3
        x = float(next(place for letter, place in places if letter == "R").split(",")[0])
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    over = find(browser, "#chart-rate .u-over")
    left = x / script(browser, "return devicePixelRatio") - script(
        browser, "return document.querySelector('#chart-rate .u-over').offsetLeft"
    )
    ActionChains(browser).move_to_element_with_offset(over, int(left - over.size["width"] / 2), 0).perform()
    title = "return document.querySelector('#chart-rate .plot').title"
    wait(browser, lambda: "roll back: a roll_back" in script(browser, title))


def test_a_domain_that_has_gone_leaves_the_list_unless_something_was_set_for_it(
    browser: webdriver.Chrome, url: str, engine: FakeEngineClient
) -> None:
    assert engine.service is not None
    judged = {
        "gone": VersionsStatus(confirmed=0, merged="gain between -0.020 and +0.010"),
        "pinned": VersionsStatus(confirmed=2, pinned="stay"),
    }
    engine.service = replace(engine.service, domains=judged)
    engine.asked_for = engine.asked_for.with_frozen("frozen", True).with_length("plain", 0)
    open_history(browser, url)
    names = "return [...document.querySelectorAll('#domains th')].map((one) => one.textContent)"
    wait(browser, lambda: script(browser, names) == ["chat", "code", "frozen", "pinned", "plain"])
    # Beyond monitor.max_domains the history tells none apart: whoever has a drafter may have had queries.
    at_s = engine.buckets[-1].at_s
    engine.buckets.append(Bucket(at_s, {Series("other", "feature", 3, "engine"): {"rounds": 1.0}}))
    wait(
        browser, lambda: script(browser, names) == ["chat", "code", "frozen", "gone", "other", "pinned", "plain", "sql"]
    )
    other = next(row for row in browser.find_elements(By.CSS_SELECTOR, "#domains tr") if row.text.startswith("other"))
    assert "further domains, counted together" in other.text and other.find_elements(By.TAG_NAME, "button") == []


def test_the_playground_tells_tokens_apart(browser: webdriver.Chrome, url: str, engine: FakeEngineClient) -> None:
    open_dashboard(browser, url)
    click(browser, "#ask")
    wait(browser, lambda: "Plain" in text_of(browser, "playground-note") or find(browser, "#ask").is_enabled())
    wait(browser, find(browser, "#ask").is_enabled)
    assert text_of(browser, "speculated") == text_of(browser, "plain") == "Hello world"
    kinds = [one.get_attribute("class") for one in browser.find_elements(By.CSS_SELECTOR, "#speculated .token")]
    assert kinds[:4] == ["token first", "token accepted", "token accepted", "token recovered"]
    style = "return getComputedStyle(document.querySelector(arguments[0])).borderBottomStyle"
    shapes = {kind: script(browser, style, f"#speculated .{kind}") for kind in ("accepted", "recovered")}
    assert shapes == {"accepted": "solid", "recovered": "dashed"}
    first_round = find(browser, "#rounds tr").text
    assert "feature v3" in first_round and "■■□□ 2 of 4" in first_round
    assert "acceptance rate" in text_of(browser, "speculated-figures")
    assert [query.speculation_length for query in engine.requests] == [None, 0]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_follow_the_theme(browser: webdriver.Chrome, url: str, theme: str) -> None:
    look(browser, width=1280, theme=theme)
    open_history(browser, url)
    colour = script(browser, "return getComputedStyle(document.documentElement).getPropertyValue('--line-0').trim()")
    assert colour == {"light": "#0f766e", "dark": "#35c4b5"}[theme]
    assert focused_id(browser) is not None
