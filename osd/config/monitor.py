"""Settings of the drift monitor: history, alerts, webhooks."""

from __future__ import annotations

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from osd.config.section import Section

Condition = Literal[
    "drift",
    "roll_back",
    "gate_starved",
    "acceptance_below",
    "outcomes_dropped",
    "engine_restarts",
    "engine_away",
    "trainer_stuck",
]


class AlertRule(Section):
    """When to raise an alert."""

    name: str = Field(pattern="^[a-z0-9_]{1,64}$", description="Names the alert; every rule has one of its own.")
    when: Condition = Field(description="The condition, see docs/monitoring.md.")
    bound: float = Field(0.0, ge=0, description="The condition's bound: a rate, or a number of occurrences.")
    window_s: float = Field(600.0, ge=10, le=86_400, description="Seconds that the condition looks back.")
    for_s: float = Field(0.0, ge=0, le=7 * 86_400, description="Seconds that it must hold before the alert fires.")
    domain: str = Field("", description="Only this domain; empty: each domain by itself.")
    severity: Literal["info", "warning", "critical"] = Field("warning", description="Passed on to receivers.")


DEFAULT_RULES = (
    AlertRule(name="drift", when="drift"),
    AlertRule(name="roll_back", when="roll_back"),
    AlertRule(name="gate_starved", when="gate_starved", for_s=3600.0),
    AlertRule(name="outcomes_dropped", when="outcomes_dropped"),
    AlertRule(name="engine_restarts", when="engine_restarts", bound=2, window_s=3600.0, severity="critical"),
    AlertRule(name="engine_away", when="engine_away", for_s=60.0, severity="critical"),
    AlertRule(name="trainer_stuck", when="trainer_stuck", for_s=600.0),
)


class Webhook(Section):
    """A receiver of alerts."""

    url: str = Field(description="Where alerts are posted to.")
    format: Literal["generic", "slack"] = Field("generic", description="'slack' posts {\"text\": …}.")
    secret_env: str = Field(
        "", description="Environment variable with the key of the HMAC-SHA256 signature; empty: not signed."
    )

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ValueError("a webhook's url must begin with http:// or https:// and name a host")
        return url


class MonitorConfig(Section):
    """The history of what was served and learnt, and alerts about it."""

    history: str = Field("osd:history", description="Prefix of the history's keys in Redis.")
    history_bytes: int = Field(32 << 20, ge=1 << 20, description="Most bytes of history kept in Redis.")
    max_domains: int = Field(20, ge=1, le=200, description="Domains with figures of their own; others are 'other'.")
    alerts: tuple[AlertRule, ...] = Field(DEFAULT_RULES, description="Rules; given ones replace the default ones.")
    webhooks: tuple[Webhook, ...] = Field((), description="Receivers of alerts.")

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [rule.name for rule in self.alerts]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"alerts has two rules called {name!r}; every rule needs a name of its own")
        return self
