"""Stand-ins for what the HTTP front depends on: an engine client that follows a script, and `fake_codec`."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from osd.fleet.heartbeat import EngineReport
from osd.monitor.alerts import Alert, AlertsAnswer, UnknownAlertError
from osd.monitor.answer import answer, checked, tier_of
from osd.monitor.buckets import Bucket, HistoryAnswer, HistoryQuery
from osd.monitor.wishes import Wishes
from osd.records.drafter_id import DrafterId
from osd.records.errors import EngineUnavailableError, UnknownVersionError, WeightsRefusedError
from osd.records.events import Event
from osd.records.outcome import Round
from osd.records.query import FinishReason, QueryStats, Request, TokenDelta, TokenLogprob
from osd.records.status import ServiceStatus
from osd.records.version import WeightManifest
from tests.kit.fake_codec import FakeCodec as FakeCodec
from tests.kit.fake_status import fake_manifest


@dataclass(kw_only=True)
class FakeEngineClient:
    """Answers every query with `answer`, `tokens_per_delta` at a time, and remembers what was asked of it."""

    answer: str = "Hello world"
    tokens_per_delta: int = 3
    """Deltas after the first have this many tokens; each is one round."""
    refuse: Exception | None = None
    """Raised before the first delta: a full queue, an absent engine."""
    fail_after: tuple[int, Exception] | None = None
    """After so many deltas, raise this."""
    finish_as: FinishReason | None = None
    """Instead of 'stop' or 'length'."""
    error: str | None = None
    """What the last delta says went wrong."""
    pause_after: int | None = None
    """After so many deltas, wait for `go_on`."""
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    paused: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once a query waits for `go_on`."""
    service: ServiceStatus | None = None
    """None: the engine is unavailable."""
    event_log: list[Event] = field(default_factory=list)
    buckets: list[Bucket] = field(default_factory=list)
    reports: list[EngineReport] = field(default_factory=list)
    held_alerts: list[Alert] = field(default_factory=list)
    silences: dict[str, float] = field(default_factory=dict)
    asked_for: Wishes = Wishes()
    manifests: list[WeightManifest] = field(default_factory=list)

    requests: list[Request] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    """Ids of queries whose stream was closed before it ended."""
    calls: list[tuple[object, ...]] = field(default_factory=list)

    async def generate(self, request: Request) -> AsyncIterator[TokenDelta]:
        self.requests.append(request)
        finished = False
        try:
            for number, delta in enumerate(self._script(request)):
                if number == self.pause_after:
                    self.paused.set()
                    await self.go_on.wait()
                if number == 0 and self.refuse is not None:
                    raise self.refuse
                if self.fail_after is not None and number == self.fail_after[0]:
                    raise self.fail_after[1]
                finished = delta.finish_reason is not None
                yield delta
        finally:
            if not finished:
                self.closed.append(request.request_id)

    def _script(self, request: Request) -> list[TokenDelta]:
        """The first token comes from the prefill, the others in rounds, of which one token each was not accepted."""
        params = request.params
        stops = [at for stop in params.stop if (at := self.answer.find(stop)) >= 0]
        text = self.answer[: min(stops)] if stops else self.answer
        reason: FinishReason = "length" if len(text) > params.max_tokens else "stop"
        ids = tuple(ord(char) for char in text[: params.max_tokens])
        groups = [ids[:1], *(ids[at : at + self.tokens_per_delta] for at in range(1, len(ids), self.tokens_per_delta))]
        rounds = len(groups) - 1
        stats = QueryStats(
            prompt_tokens=len(request.prompt_ids),
            output_tokens=len(ids),
            rounds=rounds,
            proposed=4 * rounds,
            accepted=len(ids) - 1 - rounds,
            committed=len(ids) - 1,
            accepted_histogram=_histogram([len(group) - 1 for group in groups[1:]]),
            drafters=(DrafterId("feature", 2), DrafterId("feature", 3)),
            domain=request.domain,
            queue_ms=1.0,
            prefill_ms=2.0,
            draft_ms=3.0,
            verify_ms=4.0,
            total_ms=10.0,
        )
        return [
            TokenDelta(
                request_id=request.request_id,
                token_ids=group,
                text="".join(map(chr, group)),
                logprobs=tuple(_logprob(token_id, params.logprobs) for token_id in group)
                if params.logprobs is not None
                else (),
                finish_reason=(self.finish_as or reason) if number == rounds else None,
                error=self.error if number == rounds else None,
                stats=stats if number == rounds else None,
                round=_round(request, len(group) - 1) if number else None,
            )
            for number, group in enumerate(groups)
        ]

    async def status(self) -> ServiceStatus:
        if self.service is None:
            raise EngineUnavailableError("no engine yet; try again")
        return self.service

    async def events(self, limit: int, from_s: float = 0.0, to_s: float = math.inf) -> list[Event]:
        return [one for one in self.event_log if from_s <= one.at_s <= to_s][-limit:]

    async def history(self, query: HistoryQuery) -> HistoryAnswer:
        return answer(checked(query), tier_of(query, time.time()), self.buckets, await self.events(500, query.from_s))

    async def engines(self) -> list[EngineReport]:
        return self.reports

    async def alerts(self) -> AlertsAnswer:
        return AlertsAnswer(alerts=self.held_alerts, silences=self.silences, rules=["drift", "trainer_stuck"])

    async def acknowledge(self, name: str, subject: str, who: str) -> None:
        self.calls.append(("acknowledge", name, subject))
        for alert in self.held_alerts:
            if (alert.name, alert.subject) == (name, subject):
                alert.acknowledged_by = who
                return
        raise UnknownAlertError(f"there is no alert {name!r} now")

    async def silence(self, name: str, for_s: float, who: str) -> None:
        self.calls.append(("silence", name, for_s))
        if name not in ("drift", "trainer_stuck"):
            raise UnknownAlertError(f"there is no alert rule {name!r}")
        self.silences = {**self.silences, name: time.time() + for_s} if for_s else {}

    async def wishes(self) -> Wishes:
        return self.asked_for

    async def set_length(self, domain: str, length: int | None) -> None:
        self.calls.append(("policy", domain, length))
        self.asked_for = self.asked_for.with_length(domain, length)

    async def set_frozen(self, domain: str, frozen: bool) -> None:
        self.calls.append(("freeze", domain, frozen))
        self.asked_for = self.asked_for.with_frozen(domain, frozen)

    async def set_draining(self, engine_id: str, draining: bool) -> None:
        self.calls.append(("drain", engine_id, draining))
        self.asked_for = self.asked_for.with_draining(engine_id, draining)

    async def train_now(self) -> None:
        self.calls.append(("train_now",))

    async def publish_candidate(self) -> None:
        self.calls.append(("publish",))

    async def mark(self, event: Event) -> None:
        self.event_log.append(event)

    async def versions(self, domain: str = "") -> list[WeightManifest]:
        if domain:
            self.calls.append(("versions", domain))
        return self.manifests

    async def pause_training(self) -> None:
        self.calls.append(("pause",))

    async def resume_training(self) -> None:
        self.calls.append(("resume",))

    async def roll_back(self, to: int, reason: str, domain: str = "") -> WeightManifest:
        self.calls.append(("roll_back", to, reason, *([domain] if domain else [])))
        return self._check_usable(to) if to or not domain else fake_manifest(0)

    def _check_usable(self, version: int) -> WeightManifest:
        for manifest in self.manifests:
            if manifest.number == version and manifest.rolled_back:
                raise WeightsRefusedError(f"version {version} was itself rolled back: {manifest.rolled_back}")
            if manifest.number == version:
                return manifest
        raise UnknownVersionError(f"there is no drafter version {version}")

    async def pin(self, version: int, reason: str, domain: str = "") -> None:
        self.calls.append(("pin", version, reason, *([domain] if domain else [])))
        if version or not domain:
            self._check_usable(version)

    async def unpin(self, domain: str = "") -> None:
        if domain and (self.service is None or domain not in self.service.domains):
            raise UnknownVersionError(f"domain {domain!r} has no drafter of its own; the base drafter serves it")
        self.calls.append(("unpin", *([domain] if domain else [])))


def _round(request: Request, num_accepted: int) -> Round:
    return Round(0, 0, 0) if request.speculation_length == 0 else Round(3, 4, num_accepted, "feature")


def _histogram(accepted: list[int]) -> tuple[int, ...]:
    return tuple(accepted.count(count) for count in range(5)) if accepted else ()


def _logprob(token_id: int, num_top: int) -> TokenLogprob:
    """The token itself at -0.5, then alternatives, the last of them impossible."""
    top = tuple((token_id + rank, -0.5 - rank if rank < 2 else float("-inf")) for rank in range(num_top))
    return TokenLogprob(token_id=token_id, logprob=-0.5, top=top)
