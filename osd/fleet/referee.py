"""Decides which drafter version each engine serves: a new version is tried by a few engines before all get it.

A version on trial is served by the canaries. The referee compares their acceptance with that of the version before,
over the rounds of all engines (`osd.fleet.comparison`), and rules that the version is confirmed or rolled back. It
holds nothing that is lost for good: which versions there are is in the store, and the rounds are in the engines, which
report all of them to a supervisor that was restarted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from osd.config.versions import SwapConfig
from osd.fleet.comparison import compare, is_known
from osd.fleet.first_token_window import FirstTokenWindow
from osd.fleet.heartbeat import EngineReport

_FEW_ENGINES = 3
"""With fewer engines, all of them are canaries by default."""
_NUM_WINDOWS = 4
"""Newest versions whose rounds are remembered."""


class Standing(NamedTuple):
    """What the store says."""

    latest: int
    """The newest version that was not rolled back."""
    confirmed: int
    """The newest version that passed its trial, or that an operator chose."""
    is_pinned: bool = False
    """The operator wants the confirmed version to serve, whatever is published."""


class Ruling(NamedTuple):
    """What is to be done about a version on trial."""

    kind: Literal["confirm", "roll_back", "refuse"]
    """`refuse`: an engine could not use it."""
    version: int
    reason: str


def num_canaries(config: SwapConfig, num_engines: int) -> int:
    """How many of the engines try a new version first."""
    if config.canary_share is None:
        return 1 if num_engines >= _FEW_ENGINES else num_engines
    return min(math.ceil(config.canary_share * num_engines), num_engines)


class Referee:
    """Judges one kind of drafter for all engines.

    Args:
        config: the `swap` section.
    """

    def __init__(self, config: SwapConfig) -> None:
        self._config = config
        self._standing: Standing | None = None
        self._trial: int | None = None
        self._baseline = 0
        """The version that the one on trial is compared with."""
        self._windows: dict[int, FirstTokenWindow] = {}
        self._engines: tuple[EngineReport, ...] = ()
        self._canaries: set[str] = set()
        self._refusals: dict[int, str] = {}

    @property
    def trial(self) -> int | None:
        """The version on trial."""
        return self._trial

    @property
    def canaries(self) -> list[str]:
        """Ids of the engines that try it."""
        return sorted(self._canaries) if self._trial is not None else []

    def take(self, report: EngineReport) -> None:
        """Take an engine's evidence; the same evidence again changes nothing."""
        for rounds in report.rounds:
            query = f"{report.engine_id}/{rounds.query}"
            self._window(rounds.version).put(query, rounds.num_rounds, rounds.num_accepted)
        for version, why in report.refused.items():
            self._refusals.setdefault(version, f"engine {report.engine_id}: {why}")

    def refusal(self, version: int) -> str | None:
        """Why an engine refused a version; None if none did."""
        return self._refusals.get(version)

    def assign(self, engines: Sequence[EngineReport]) -> None:
        """Choose the canaries among the engines that are present.

        An engine that is one stays one. Of the others, those that serve the version on trial come first: they were
        canaries before the supervisor was restarted.
        """
        self._engines = tuple(engines)
        self._canaries &= {report.engine_id for report in engines}
        others = [report for report in engines if report.engine_id not in self._canaries]
        others.sort(key=lambda report: (report.drafter.version != self._trial, report.engine_id))
        num_missing = num_canaries(self._config, len(engines)) - len(self._canaries)
        self._canaries.update(report.engine_id for report in others[: max(num_missing, 0)])

    def stand(self, standing: Standing) -> None:
        """Take what the store says now. A newer version waits for the trial's end, unless every engine is a canary."""
        self._standing = standing
        latest, confirmed, is_pinned = standing
        wanted = None if is_pinned or latest == confirmed else latest
        is_open = self._trial is not None and self._trial > confirmed
        if is_open and wanted is not None and wanted > (self._trial or 0) and self._has_control:
            return
        if wanted != self._trial:
            self._begin(wanted, confirmed)
            newest = sorted(self._windows)[-_NUM_WINDOWS:]
            kept = {confirmed, self._baseline, *newest}
            self._windows = {version: window for version, window in self._windows.items() if version in kept}

    def rejected(self, standing: Standing) -> None:
        """The version on trial was rejected."""
        self._trial = None
        self.stand(standing)

    def ruling(self) -> Ruling | None:
        """What the evidence says about the version on trial; None while it is undecided or there is none."""
        version = self._trial
        if version is None:
            return None
        if refusal := self.refusal(version):
            return Ruling("refuse", version, f"refused by {refusal}")
        if not any(report.drafter.version == version for report in self._engines):
            return None
        before, after = self._window(self._baseline), self._window(version)
        if not is_known(before, self._config) and not self._has_control:
            return Ruling("confirm", version, f"there are no rounds of version {self._baseline} to compare with")
        verdict = compare(before, after, self._config)
        rates = f"from {before.rate:.2f} to {after.rate:.2f} after the swap"
        if verdict == "worse":
            return Ruling("roll_back", version, f"first-token acceptance fell {rates}")
        if verdict == "sound":
            return Ruling("confirm", version, f"first-token acceptance went {rates}")
        return None

    def version_for(self, engine_id: str) -> int | None:
        """The version that an engine has to serve; None if that is unknown yet."""
        if self._standing is None:
            return None
        return self._trial if self._trial is not None and engine_id in self._canaries else self._standing.confirmed

    def figures(self) -> dict[str, float]:
        """First-token acceptance and number of rounds of the version on trial and of the one it is compared with."""
        if self._trial is None:
            return {}
        before, after = self._window(self._baseline), self._window(self._trial)
        return {"before": before.rate, "after": after.rate, "rounds_before": len(before), "rounds_after": len(after)}

    @property
    def _has_control(self) -> bool:
        """Engines go on serving the version before, and so add to what is known of it."""
        return any(report.engine_id not in self._canaries for report in self._engines)

    def _begin(self, version: int | None, confirmed: int) -> None:
        """Put a version on trial.

        It is compared with the confirmed version, or with the version whose trial it cuts short if enough is known of
        that: the confirmed version may have served long ago, with other traffic.
        """
        replaced, self._trial = self._trial, version
        is_newer = version is not None and replaced is not None and confirmed < replaced < version
        if is_newer and replaced is not None and is_known(self._window(replaced), self._config):
            self._baseline = replaced
        elif version is None or not confirmed < self._baseline < version:
            self._baseline = confirmed
        if not is_newer:
            self._canaries.clear()
            self.assign(self._engines)

    def _window(self, version: int) -> FirstTokenWindow:
        return self._windows.setdefault(version, FirstTokenWindow(self._config.watch_rounds))
