"""The alerts of one service: pending until a condition has held long enough, then firing until it ends.

Alerts, acknowledgements and silences are events in the history, from which they are taken again after a restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from osd.config.monitor import AlertRule
from osd.monitor.conditions import reasons
from osd.monitor.facts import Facts
from osd.records.errors import OsdError
from osd.records.events import Event

MOST_SILENT_S = 30 * 86_400
"""What a rule can be silenced for."""
_SETTLED_AFTER_S = 60.0
"""By then after a restart, whoever the conditions are about has reported."""


class UnknownAlertError(OsdError):
    """There is no such alert."""


@dataclass(slots=True, kw_only=True)
class Alert:
    """One rule that holds of one subject."""

    name: str
    subject: str
    """A domain or an engine; empty: the service."""
    severity: str
    state: Literal["pending", "firing"]
    since_s: float
    """When the condition began to hold."""
    why: str
    fired_s: float = 0.0
    acknowledged_by: str = ""
    silenced_until_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertsAnswer:
    """What holds now."""

    alerts: list[Alert]
    """Pending and firing, the oldest first."""
    silences: dict[str, float]
    """Silenced rules, and until when (seconds since the epoch)."""
    rules: list[str]
    """The names of all rules."""


class Alerts:
    """Follows all rules. Not thread-safe.

    Args:
        rules: of the configuration.
    """

    def __init__(self, rules: Sequence[AlertRule]) -> None:
        self._rules = {rule.name: rule for rule in rules}
        self._alerts: dict[tuple[str, str], Alert] = {}
        self._silences: dict[str, float] = {}
        self._acknowledged: dict[tuple[str, str], tuple[float, str]] = {}
        self._taken_up: set[tuple[str, str]] = set()
        """Alerts that fired before a restart and have not held since."""
        self._taken_up_s = 0.0

    @property
    def rules(self) -> list[str]:
        """The rules' names."""
        return list(self._rules)

    def remember(self, events: Iterable[Event], now_s: float) -> None:
        """Take up earlier alerts, acknowledgements and silences from the history; its events come oldest first."""
        for event in events:
            name, subject = str(event.data.get("alert", "")), str(event.data.get("subject", ""))
            if name not in self._rules:
                continue
            if event.kind == "silence":
                self._silences[name] = float(event.data["until_s"])
            elif event.kind == "acknowledge":
                self._acknowledged[name, subject] = (event.at_s, str(event.data.get("who", "")))
            elif event.kind == "alert":
                self._take_up(event, (name, subject))
        self._taken_up_s = now_s

    def _take_up(self, event: Event, key: tuple[str, str]) -> None:
        """An alert that fired goes on, so that nobody is told again; with its end, its acknowledgement ended, too."""
        if event.data["state"] != "firing":
            self._acknowledged.pop(key, None)
            self._alerts.pop(key, None)
            self._taken_up.discard(key)
            return
        self._alerts[key] = Alert(
            name=key[0],
            subject=key[1],
            severity=str(event.data["severity"]),
            state="firing",
            since_s=float(event.data["since_s"]),
            why=event.message,
            fired_s=event.at_s,
        )
        self._taken_up.add(key)

    def update(self, facts: Facts) -> list[Event]:
        """Look at all rules; returns an event for each alert that begins to fire or ends, unless it is silenced."""
        told = []
        holding: set[tuple[str, str]] = set()
        for rule in self._rules.values():
            for subject, why in reasons(rule, facts).items():
                holding.add((rule.name, subject))
                if event := self._hold(rule, subject, why, facts.at_s):
                    told.append(event)
        self._taken_up -= holding
        if abs(facts.at_s - self._taken_up_s) > _SETTLED_AFTER_S:
            self._taken_up.clear()
        for key in [key for key in self._alerts if key not in holding and key not in self._taken_up]:
            alert = self._alerts.pop(key)
            self._acknowledged.pop(key, None)
            if alert.state == "firing":
                told.append(_event(alert, "resolved", facts.at_s))
        return [event for event in told if not self._is_silent(str(event.data["alert"]), facts.at_s)]

    def current(self, now_s: float) -> list[Alert]:
        """Pending and firing alerts, the oldest first."""
        for alert in self._alerts.values():
            alert.silenced_until_s = self._silences.get(alert.name, 0.0) if self._is_silent(alert.name, now_s) else 0.0
        return sorted(self._alerts.values(), key=lambda alert: alert.since_s)

    def silences(self, now_s: float) -> dict[str, float]:
        """Rules that are silent now, and until when."""
        return {name: until_s for name, until_s in self._silences.items() if self._is_silent(name, now_s)}

    def acknowledge(self, name: str, subject: str, who: str, now_s: float) -> Event:
        """Somebody takes care of an alert; returns the event to keep.

        Raises:
            UnknownAlertError: it does not fire (any more).
        """
        alert = self._alerts.get((name, subject))
        if alert is None:
            of = f" of {subject!r}" if subject else ""
            raise UnknownAlertError(f"there is no alert {name!r}{of} now; it may have ended")
        alert.acknowledged_by = who
        self._acknowledged[name, subject] = (now_s, who)
        data = {"alert": name, "subject": subject, "who": who}
        return Event(at_s=now_s, kind="acknowledge", message=f"alert {name} was acknowledged by {who}", data=data)

    def silence(self, name: str, for_s: float, who: str, now_s: float) -> Event:
        """Tell nobody about a rule's alerts for a while (0: tell again); returns the event to keep.

        Raises:
            UnknownAlertError: there is no such rule.
        """
        if name not in self._rules:
            raise UnknownAlertError(f"there is no alert rule {name!r}; the rules are {', '.join(self._rules)}")
        self._silences[name] = now_s + for_s
        data = {"alert": name, "until_s": now_s + for_s, "who": who}
        text = f"alert {name} is silenced for {for_s:.0f} s by {who}" if for_s else f"{who} ended the silence of {name}"
        return Event(at_s=now_s, kind="silence", message=text, data=data)

    def _hold(self, rule: AlertRule, subject: str, why: str, now_s: float) -> Event | None:
        key = (rule.name, subject)
        alert = self._alerts.get(key)
        if alert is None:
            alert = Alert(
                name=rule.name, subject=subject, severity=rule.severity, state="pending", since_s=now_s, why=why
            )
            self._alerts[key] = alert
        alert.why = why
        alert.since_s = min(alert.since_s, now_s)  # the clock may have been put back
        if key in self._acknowledged:
            alert.acknowledged_by = self._acknowledged[key][1]
        if alert.state == "pending" and now_s - alert.since_s >= rule.for_s:
            alert.state, alert.fired_s = "firing", now_s
            return _event(alert, "firing", now_s)
        return None

    def _is_silent(self, name: str, now_s: float) -> bool:
        return 0 < self._silences.get(name, 0.0) - now_s <= MOST_SILENT_S  # longer, if the clock was put back


def _event(alert: Alert, state: str, at_s: float) -> Event:
    of = f" ({alert.subject})" if alert.subject else ""
    text = f"{alert.name}{of}: {alert.why}" if state == "firing" else f"{alert.name}{of} has ended"
    data = {
        "alert": alert.name,
        "subject": alert.subject,
        "severity": alert.severity,
        "state": state,
        "since_s": alert.since_s,
    }
    return Event(at_s=at_s, kind="alert", message=text, data=data)
