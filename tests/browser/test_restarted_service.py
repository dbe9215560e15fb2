"""A real service that is stopped as a whole, Redis with it, and started again: the page shows what was before."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from actors.process.session import has_ended
from actors.supervisor.earlier_run import EarlierRun
from benchmarks.server import osd_server
from osd.config.paths import redis_dir
from osd.config.settings import load_config
from osd.io.embedded_redis import EmbeddedRedis
from osd.io.history_store import RedisHistory
from osd.monitor.buckets import Series
from osd.monitor.history import History
from osd.records.events import Event
from tests.browser.driving import choose, click, drawn, find, script, sign_in, text_of, wait
from tests.e2e.conftest import ADMIN_TOKEN, PROMPTS, Server
from tests.kit.history_stores import SetClock
from tests.kit.saved_models import save_llama
from tests.kit.waiting import wait_for

pytestmark = [
    pytest.mark.browser,
    pytest.mark.ray,
    pytest.mark.redis,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(360),
]
DAY_S = 86_400.0


def _write_yesterday(state: Path) -> None:
    """What a service of yesterday left in the state folder, with its own clock and its own Redis."""
    config = load_config().monitor
    server = EmbeddedRedis(redis_dir(state), max_memory_bytes=128 << 20)
    server.start()
    try:
        with closing(RedisHistory(server.url, config.history, max_bytes=config.history_bytes)) as store:
            clock = SetClock(time.time() - DAY_S)
            history = History(store, clock_s=clock)
            for _ in range(40):
                figures = {"queries": 1.0, "rounds": 20.0, "proposed": 60.0, "accepted": 30.0, "committed": 50.0}
                history.add(Series("yesterday", "feature", 1, "engine"), figures)
                clock.now_s += 30
            history.mark(Event(at_s=clock.now_s, kind="publish", message="published yesterday"))
            assert history.flush()
            EarlierRun(store, clock.now_s).settle(clock.now_s)
    finally:
        server.stop()


@contextmanager
def _running(tmp_path: Path, flags: list[str]) -> Iterator[Server]:
    with osd_server(tmp_path / "state", tmp_path / "log", flags) as url:
        server = Server(url, "tiny")
        with server.openai, server.admin:
            yield server


def _rounds(server: Server) -> dict[str, float]:
    """Rounds by domain, of the last two days."""
    answer = server.admin.get("/admin/api/history", params={"from": -2 * DAY_S, "by": "domain"}).raise_for_status()
    return {one["of"]["domain"]: sum(filter(None, one["figures"].get("rounds", []))) for one in answer.json()["series"]}


def test_after_a_restart_of_everything_the_page_shows_yesterday(
    browser: webdriver.Chrome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSD_ADMIN_TOKEN", ADMIN_TOKEN)
    flags = ["--target", str(save_llama(tmp_path / "tiny")), "--max-context-tokens", "256", "--threads", "1"]
    _write_yesterday(tmp_path / "state")
    others = psutil.Process().children(recursive=True)
    with _running(tmp_path, flags) as server:
        asked = [server.answer(prompt, osd={"domain": "today"}).osd for prompt in PROMPTS]
        server.admin.post("/admin/api/policy", json={"domain": "today", "length": 2}).raise_for_status()
        server.admin.post("/admin/api/freeze", json={"domain": "yesterday"}).raise_for_status()
        server.train(paused=True)
        wait_for(lambda: server.events("restart"), "the time since yesterday to be marked")
        before = {"today": float(sum(one["rounds"] for one in asked)), "yesterday": 800.0}
        wait_for(lambda: _rounds(server) == before, "the engine's report")
        processes = [one for one in psutil.Process().children(recursive=True) if one not in others]
        assert any("redis-server" in one.name() for one in processes)
    assert [one for one in processes if not has_ended(one)] == []
    with _running(tmp_path, flags) as server:
        assert _rounds(server) == before, "counted once, and nothing lost"
        _page_shows_both_days(browser, server)


def _page_shows_both_days(browser: webdriver.Chrome, server: Server) -> None:
    sign_in(browser, server.url, ADMIN_TOKEN)
    choose(browser, "#range", "1 week")
    wait(browser, lambda: "yesterday" in text_of(browser, "summary"))
    rows = {row.text.split()[0]: row.text.split() for row in browser.find_elements(By.CSS_SELECTOR, "#summary tr")}
    assert rows["yesterday"][1:3] == ["50.0%", "2.50"] and rows["yesterday"][-2:] == ["800", "40"]
    assert rows["today"][-1] == str(len(PROMPTS))
    wait(browser, lambda: text_of(browser, "events").count("the service was restarted; nothing was counted for") == 2)
    events = text_of(browser, "events")
    assert "published yesterday" in events and "token from 127.0.0.1: freeze the domain yesterday" in events
    kinds = "return osd.charts.history.served.marks.map((one) => one.kind)"
    assert {"publish", "restart", "audit"} <= set(script(browser, kinds))
    domains = {row.text.split()[0]: row.text for row in browser.find_elements(By.CSS_SELECTOR, "#domains tr")}
    assert "2 tokens" in domains["today"] and "❄ frozen" in domains["yesterday"]
    script(browser, "const now = Date.now() / 1000; osd.history.zoomTo(now - 2 * 86400, now)")
    wait(browser, lambda: drawn(browser)["lines"] == ["today", "yesterday"])
    click(browser, "#follow")
    wait(browser, lambda: text_of(browser, "trainer-state") == "paused")
    # And the page goes on: what is done now is done, and kept.
    click(browser, "#domains button[data-act=thaw]")
    click(browser, "#confirm-yes")
    wait(browser, lambda: "thaw the domain yesterday" in text_of(browser, "events"))
    assert server.admin.get("/admin/api/wishes").json()["frozen"] == []
    assert not find(browser, "#alert").is_displayed()
