"""The engine: continuous batching around one loop of propose, verify and commit.

`step()` is Speculative Decoding (Leviathan et al. 2023, arXiv 2211.17192, algorithm 1) over all decoding rows, with the
recording of Online Speculative Decoding (Liu et al. 2024, arXiv 2310.07177). One thread owns an engine; others use it
through `osd.engine.loop.EngineLoop`. It needs no Ray, Redis or HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Iterator

from msgspec import structs

from osd.config.settings import Config
from osd.engine.deltas import NOTHING, Said
from osd.engine.endings import Endings
from osd.engine.prefill import read_chunk
from osd.engine.round import Drafted, Verified, learn, look_up, propose, rank, verify
from osd.engine.rows.row_caches import RowCaches
from osd.engine.scheduler import Scheduler
from osd.engine.sequence import Rejected, Sequence, check_request, new_sequence
from osd.engine.status import status_of
from osd.grammar.compiler import GrammarCompiler
from osd.meters.counters import Counters
from osd.meters.round_clock import RoundClock
from osd.meters.utilisation import Utilisation
from osd.models.target import Target
from osd.ports.constraint import RowConstraint
from osd.ports.drafter import Drafter, SwapIn
from osd.ports.outcomes import OutcomeRecorder
from osd.records.drafter_id import domain_of
from osd.records.events import Event, EventKind
from osd.records.outcome import Round
from osd.records.query import CONSTRAINT_FAILED, NOT_FINITE, FinishReason, Request, SamplingParams, TokenDelta
from osd.records.status import ALL_TRAFFIC, AcceptancePoint, EngineStatus
from osd.records.version import WeightManifest
from osd.speculation.arm import PLAIN, Arm, Choice
from osd.speculation.cost import Costs
from osd.speculation.depth_acceptance import AcceptanceModel
from osd.speculation.length import GoodputPolicy
from osd.speculation.lookup_arm import LookupArm
from osd.speculation.watch import SwapWatch
from osd.text.codec import TextCodec
from osd.verify.top_logprobs import TopLogprobs, wanted_top_logprobs


class Engine:
    """Serves queries with a target and any number of drafters.

    Args:
        config: sections engine, speculation and outcomes are used.
        target: the model to serve.
        codec: its tokenizer.
        policy: chooses among the drafters (its arms); without any, decoding is plain.
        recorder: records outcomes; None records nothing.
        on_event: called on swaps and failures.
    """

    def __init__(
        self,
        config: Config,
        target: Target,
        codec: TextCodec,
        policy: GoodputPolicy,
        *,
        recorder: OutcomeRecorder | None = None,
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> None:
        lookups = [] if policy.lookup is None else [policy.lookup.drafter]
        rows = RowCaches(target, [arm.drafter for arm in policy.all_arms], lookups, config.engine)
        counters = Counters()
        self.config, self.target, self.codec, self.policy = config, target, codec, policy
        self.recorder, self.on_event = recorder, on_event
        self.rows, self.counters = rows, counters
        self.scheduler = Scheduler(config.engine, rows.swap)
        self.grammars = GrammarCompiler(codec, target.eos_ids)
        """Compiles constraints; may be used on other threads."""
        self.utilisation = Utilisation()
        self._endings = Endings(config, counters, recorder)
        self._clock = RoundClock(target.lm.device)
        self._sequences: dict[str, Sequence] = {}
        self._owes_round = False
        self._drifting: frozenset[str] = frozenset()
        self._started_s = time.monotonic()

    # ---- called by users of the engine -----------------------------------------------------------------------------

    def submit(self, request: Request, constraint: RowConstraint | None = None) -> None:
        """Queue a query.

        Args:
            request: the query.
            constraint: restricts the tokens of the answer; an object of this query only. None: the request's is
                compiled here, which may take a second; compile it on another thread, with `grammars`, where that
                would delay others.

        Raises:
            ConstraintRefusedError: the request's constraint cannot be compiled.
            PromptTooLongError: there is no room for a new token.
            QueueFullError: too many queries are waiting.
            ValueError: the id is in use, the prompt is empty, or a field holds token ids that the target lacks.
        """
        if request.request_id in self._sequences:
            raise ValueError(f"request_id {request.request_id!r} is in use; give every query its own")
        check_request(request, self.target.lm.vocab_tokens, self.target.max_context_tokens)
        is_recorded = self.recorder is not None and self.recorder.takes(request.request_id)
        num_recorded = self.config.outcomes.top_k if is_recorded else 0
        if constraint is None:
            constraint = self.grammars.of_query(request)
        sequence = new_sequence(
            request,
            self.codec,
            self.target.eos_ids,
            num_recorded,
            constraint,
            rejected_top_k=self.config.outcomes.rejected_top_k,
        )
        self.scheduler.submit(sequence)
        if request.domain_from == "router":
            self.counters.add("routed_queries_total")
        self._sequences[request.request_id] = sequence
        self.policy.own.expect(request.domain)

    def cancel(self, request_id: str) -> list[TokenDelta]:
        """Free a query's row at once; ids that are unknown or finished are ignored."""
        sequence = self._sequences.get(request_id)
        return [self._finish(sequence, "cancelled")] if sequence else []

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.has_work

    def generate(self, prompts: list[str], params: SamplingParams | None = None) -> Iterator[TokenDelta]:
        """Answer prompts in this thread, yielding deltas as they come; `request_id` is the prompt's index."""
        for number, prompt in enumerate(prompts):
            ids = self.codec.encode_text(prompt)
            self.submit(Request(request_id=str(number), prompt_ids=ids, params=params or SamplingParams()))
        while self.has_work:
            yield from self.step()

    def fail_all(self, error: str) -> list[TokenDelta]:
        """End every query with an error: after a failed step, their state may be inconsistent."""
        deltas = [self._finish(sequence, "error", error=error) for sequence in list(self._sequences.values())]
        self.rows.clear()
        return deltas

    def status(self) -> EngineStatus:
        """A snapshot of the engine's status."""
        return status_of(
            self.config,
            self.target,
            self.policy,
            self.scheduler,
            self.counters,
            self.recorder,
            kept_tokens=self.rows.num_kept(len(self.scheduler.in_rows)),
            utilisation=self.utilisation.share(),
            uptime_s=time.monotonic() - self._started_s,
        )

    def history(self, limit: int) -> list[AcceptancePoint]:
        """Acceptance of the newest finished queries, oldest first."""
        return self._endings.history(limit)

    # ---- replacing drafter versions and kernels, between two steps -------------------------------------------------

    def arm(self, name: str) -> Arm:
        """The arm of the drafter with this name, which is in memory."""
        return next(arm for arm in self.policy.all_arms if arm.name == name)

    def drafter(self, name: str) -> Drafter | None:
        """The drafter with this name; None if it is not in memory."""
        return next((arm.drafter for arm in self.policy.all_arms if arm.name == name), None)

    def load_drafter(self, name: str, manifest: WeightManifest, swap_in: SwapIn) -> None:
        """Use a version that the `prepare` of the drafter with this name has made ready."""
        arm = self.arm(name)
        before, started_s = arm.drafter.id.version, time.perf_counter()
        swap_in()
        arm.is_broken = False
        arm.acceptance.reset(manifest.gate)
        self.counters.add("swaps_total")
        took_ms = (time.perf_counter() - started_s) * 1e3
        message = f"{_titled(name)} version {before} -> {manifest.number} in {took_ms:.1f} ms"
        self._event("swap", message, drafter=name, took_ms=took_ms)

    def add_drafter(self, drafter: Drafter, manifest: WeightManifest) -> None:
        """Serve a domain with a drafter of its own from now on; of more than fit, the least recently used one leaves.

        Args:
            drafter: named after its domain, with no rows yet; it reads what its rows hold when it first proposes.
            manifest: of its version.
        """
        base, policy = self.policy.arms[0], self.policy
        acceptance = AcceptanceModel(self.config.speculation.max_length)
        acceptance.reset(manifest.gate)
        # Of the same shape as the base drafter's, it costs the same, and what is measured of either holds for both.
        arm = Arm(drafter, base.costs, acceptance, SwapWatch(self.config.swap.watch_rounds), base=base)
        self.rows.add(drafter)
        for left in policy.own.add(arm):
            self._remove(left)
        self.counters.add("swaps_total")
        self._event("swap", f"{_titled(arm.name)} version {manifest.number} serves", drafter=arm.name)

    def remove_drafter(self, name: str) -> None:
        """Serve a domain with the base drafter again."""
        if (arm := self.policy.own.remove(domain_of(name))) is not None:
            self._remove(arm)
            self._event("swap", f"{_titled(name)} serves no more", drafter=name)

    def _remove(self, arm: Arm) -> None:
        self.rows.remove(arm.drafter)
        for sequence in self.scheduler.decoding:
            sequence.budget.forget(arm)

    def set_judged(self, names: Container[str]) -> None:
        """Propose at least one token where that helps to judge the serving versions of these drafters, by name."""
        for arm in self.policy.all_arms:
            arm.watch.is_judged = arm.name in names

    def prefer_lookup(self, domains: Iterable[str]) -> None:
        """Prefer the lookup to drafters in these domains (`*`: in all), whose traffic drafters do not know yet."""
        self._drifting = frozenset(domains)

    def take_over(self, target: Target, drafters: list[Drafter], costs: Costs) -> None:
        """Continue with compiled kernels; every row stays where it is.

        Args:
            target: the same model by compiled kernels; the present target if kernels do not support it.
            drafters: with the same weights and in the same order as the present ones.
            costs: of rounds with these.
        """
        started_s = time.perf_counter()
        prefilling = [] if self.scheduler.prefilling is None else [self.scheduler.prefilling]
        self.rows.adopt(target, drafters, live=[*self.scheduler.decoding, *prefilling])
        self.target = target
        for arm, drafter in zip(self.policy.all_arms, drafters, strict=True):
            arm.drafter = drafter
        self.policy.use(costs)
        took_ms = (time.perf_counter() - started_s) * 1e3
        self._event("kernels", f"compiled kernels took over from torch in {took_ms:.1f} ms", took_ms=took_ms)

    # ---- the loop --------------------------------------------------------------------------------------------------

    def step(self) -> list[TokenDelta]:
        """Prefill waiting prompts, or run one round for every decoding row: propose, verify, commit, record.

        They alternate, so that first tokens do not wait for all rounds, nor rounds for all prompts.
        """
        started_s = time.monotonic()
        deltas = [] if self._owes_round else self._prefill()
        self._owes_round = bool(deltas and self.scheduler.decoding)
        if not deltas and (rows := self.scheduler.decoding):
            choices = self._choose(rows)
            self._clock.start()
            drafted = propose(self.target, rows, choices, self._broke)
            self._clock.drafted()
            verified = verify(self.target, rows, drafted.proposal, self.config.speculation.accept_rule)
            deltas = self._commit(rows, drafted, verified, self._clock.split_ms())
        self.utilisation.add_busy(started_s, time.monotonic())
        return deltas

    def _prefill(self) -> list[TokenDelta]:
        """Prefill up to one chunk of tokens of waiting prompts; a completed prompt yields its first token."""
        deltas: list[TokenDelta] = []
        left_tokens = self.config.engine.prefill_chunk_tokens
        while left_tokens > 0 and (sequence := self.scheduler.next_prefill()) is not None:
            if sequence.num_cached == 0 and (ended := self._admit(sequence)):
                deltas.append(ended)
                continue
            chunk = read_chunk(self.target, sequence, left_tokens)
            left_tokens -= chunk.num_tokens
            if chunk.first is not None:
                deltas.append(self._begin(sequence, chunk.first))
        return deltas

    def _admit(self, sequence: Sequence) -> TokenDelta | None:
        """Assign a row to a query. A resumed one may turn out to have ended just before its engine died."""
        sequence.admitted_s = time.monotonic()
        if sequence.is_resumed and (reason := sequence.reason_to_finish(self.target.max_context_tokens)):
            return self._finish(sequence, reason)
        self.rows.begin(sequence)
        return None

    def _begin(self, sequence: Sequence, first: Verified) -> TokenDelta:
        """Commit the first token of a query whose prompt is complete, and let it decode."""
        [tokens] = first.committed
        if not tokens:
            return self._give_up(sequence)
        self.scheduler.start_decoding()
        self.rows.hold(sequence)
        if sequence.num_left == 0:
            delta = self._finish(sequence, "length")
        else:
            self.target.write_tokens(sequence.row, sequence.num_tokens, tokens)
            named = [sequence.request.params.logprob_token_ids]
            [top] = wanted_top_logprobs(first.logits, [tokens], [sequence.num_logprobs], named=named)
            delta = self._emit(sequence, tokens, top)
        if sequence.prompt_logprobs:
            delta = structs.replace(delta, prompt_logprobs=sequence.prompt_logprobs)
        return delta

    def _choose(self, rows: list[Sequence]) -> list[Choice]:
        """The arm and the speculation length for each row, by goodput."""
        lookup = self.policy.lookup
        if not (self.policy.arms or lookup):
            return [PLAIN] * len(rows)
        for sequence in rows:
            sequence.set_budget(self.config.speculation.max_length, self.target.max_context_tokens)
            sequence.budget.own = self.policy.own.use(sequence.request.domain)
            sequence.budget.prefers_lookup = not self._drifting.isdisjoint((ALL_TRAFFIC, sequence.request.domain))
        if lookup is not None and not lookup.is_broken and self.config.speculation.enabled:
            try:
                look_up(lookup, rows, self.config.speculation.max_length, self.policy.verify.ms(len(rows), 1))
            except Exception as error:
                self._broke(lookup, error)
        drafting = ((one.budget.arm(arm), one.request.request_id) for arm in self.policy.arms for one in rows)
        judged = next((arm for arm, query in drafting if arm.wants_rounds([query])), None)
        return self.policy.choose([sequence.budget for sequence in rows], judged=judged)

    def _commit(
        self, rows: list[Sequence], drafted: Drafted, verified: Verified, times_ms: tuple[float, float]
    ) -> list[TokenDelta]:
        """Append each row's committed tokens; finish the rows that end."""
        committed = verified.committed
        plain_ms = self.policy.verify.ms(len(rows), 1)
        self.counters.add_times(*times_ms, num_rows=len(rows), plain_ms=plain_ms)
        accepted = learn(self.policy, rows, drafted, committed, times_ms)
        self.target.write_rows([sequence.num_tokens for sequence in rows], committed)
        ranked = rank(rows, drafted, verified)
        deltas = []
        # In descending order: a query that ends moves the last row into its own, which must be committed by then.
        for index, sequence in reversed(list(enumerate(rows))):
            sequence.add_times(*times_ms)
            tokens, round_ = committed[index], drafted.round_of(index, accepted[index])
            top, rejected = ranked[index]
            deltas.append(self._emit(sequence, tokens, top, round_, rejected) if tokens else self._give_up(sequence))
        return deltas

    def _emit(
        self,
        sequence: Sequence,
        tokens: list[int],
        top: TopLogprobs | None,
        round_: Round | None = None,
        rejected: Rejected | None = None,
    ) -> TokenDelta:
        """Commit tokens to one query, up to its end; returns the delta. The first token has no round."""
        if sequence.constraint is not None and (error := sequence.constraint.error):
            return self._finish(sequence, "error", error=f"{CONSTRAINT_FAILED}: {error}")
        tokens, reason = sequence.cut(tokens, self.target.max_context_tokens)
        if round_ is None:
            sequence.begin(tokens, top)
        else:
            round_ = sequence.commit(tokens, round_, top, rejected)
            self.counters.add_round(round_, len(tokens), sequence.request.domain)
        said = Said.of(sequence, tokens, top, round_)
        return said.delta(sequence) if reason is None else self._finish(sequence, reason, said)

    def _finish(
        self, sequence: Sequence, reason: FinishReason, said: Said = NOTHING, error: str | None = None
    ) -> TokenDelta:
        """End a query and free its row; returns the last delta."""
        stats = self._endings.settle(sequence, reason, self.target, self.policy.arms)
        self.policy.finished(stats.prompt_tokens, stats.output_tokens)
        if reason != "error":
            self.rows.hold(sequence)
        self.scheduler.remove(sequence)
        del self._sequences[sequence.request.request_id]
        return said.last_delta(sequence, reason, stats, error)

    def _give_up(self, sequence: Sequence) -> TokenDelta:
        """End a query whose logits are NaN or infinite, since no token can be chosen from them."""
        self._event("error", f"query {sequence.request.request_id} failed at token {sequence.num_tokens}: {NOT_FINITE}")
        self.rows.drop(sequence)
        return self._finish(sequence, "error", error=NOT_FINITE)

    def _broke(self, arm: Arm | LookupArm, error: Exception) -> None:
        """Stop using an arm that raised; a drafter until another version is swapped in. Queries continue."""
        arm.is_broken = True
        version = f" version {arm.drafter.id.version}" if arm.drafter.id.version else ""
        instead = "with the base drafter" if domain_of(arm.name) else "plainly"
        message = f"{_titled(arm.name)}{version} broke, decoding {instead}: {error}"
        self._event("error", message, drafter=arm.name)

    def _event(self, kind: EventKind, message: str, **data: float | int | str) -> None:
        self.on_event(Event(at_s=time.time(), kind=kind, message=message, data=dict(data)))


def _titled(name: str) -> str:
    """A drafter as events name it."""
    return f"drafter of domain {domain!r}," if (domain := domain_of(name)) else "drafter"
