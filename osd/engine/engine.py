"""The engine: continuous batching around one loop of propose, verify, commit.

`step()` is Speculative Decoding (Leviathan et al. 2023, arXiv 2211.17192, algorithm 1) over all decoding rows, with the
recording that Online Speculative Decoding adds (Liu et al. 2024, arXiv 2310.07177). One thread owns an engine; see
`osd.engine.loop.EngineLoop` for how others talk to it. It needs neither Ray nor Redis nor HTTP.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

from osd.config.settings import Config
from osd.engine.overflow import read_again
from osd.engine.recording import outcome_maker
from osd.engine.row_caches import RowCaches
from osd.engine.scheduler import Scheduler
from osd.engine.sequence import Sequence, acceptance_point, check_prompt, new_sequence
from osd.engine.status import status_of
from osd.machine.transfer import prepended
from osd.meters.counters import Counters
from osd.meters.round_clock import RoundClock
from osd.meters.utilisation import Utilisation
from osd.models.target import Target
from osd.ports.drafter import Drafter, SwapIn
from osd.ports.outcomes import OutcomeRecorder
from osd.records.events import Event, EventKind
from osd.records.outcome import BONUS
from osd.records.proposal import DraftBatch, Proposal
from osd.records.query import NOT_FINITE, FinishReason, Request, SamplingParams, TokenDelta, TokenLogprob
from osd.records.status import AcceptancePoint, EngineStatus
from osd.records.version import WeightManifest
from osd.speculation.calibrate import NUM_TIMINGS, calibrate
from osd.speculation.cost import Costs
from osd.speculation.length import GoodputPolicy
from osd.speculation.watch import SwapWatch
from osd.text.codec import TextCodec
from osd.verify.logits import Logits
from osd.verify.top_logprobs import TopLogprobs, wanted_top_logprobs
from osd.verify.verdict import verify_rows

_HISTORY_QUERIES = 4096


class Engine:
    """Serves queries with a target and, when there is one, a drafter.

    Args:
        config: sections engine, speculation, outcomes and swap are used.
        target: the model served.
        codec: its tokenizer.
        drafter: None decodes plainly.
        recorder: where outcomes go; None records nothing.
        on_event: told of swaps and failures.
        on_regression: told (version, reason) when a swapped-in version is accepted significantly less.
        num_timings: how often each kind of pass is timed at first.
    """

    def __init__(
        self,
        config: Config,
        target: Target,
        codec: TextCodec,
        drafter: Drafter | None,
        *,
        recorder: OutcomeRecorder | None = None,
        on_event: Callable[[Event], None] = lambda event: None,
        on_regression: Callable[[int, str], None] = lambda version, reason: None,
        num_timings: int = NUM_TIMINGS,
    ) -> None:
        self.config, self.target, self.codec, self.drafter = config, target, codec, drafter
        self.recorder, self.on_event, self.on_regression = recorder, on_event, on_regression
        self.rows = RowCaches(target, drafter, config.engine.max_slots, prefix_caching=config.engine.prefix_caching)
        self.scheduler = Scheduler(config.engine, self.rows.swap)
        num_slots, max_length = config.engine.max_slots, config.speculation.max_length
        costs = calibrate(target, drafter, num_slots=num_slots, max_length=max_length, num_timings=num_timings)
        self.policy = GoodputPolicy(config.speculation, costs)
        self.watch = SwapWatch(config.swap)
        self.counters = Counters()
        self.utilisation = Utilisation()
        self._history: deque[AcceptancePoint] = deque(maxlen=_HISTORY_QUERIES)
        self._sequences: dict[str, Sequence] = {}
        self._drafter_broken = self._owes_round = False
        self._clock = RoundClock(target.lm.device)
        self._started_s = time.monotonic()

    # ---- what callers do -------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue a query.

        Raises:
            PromptTooLongError: no room is left for one new token.
            QueueFullError: too many wait.
            ValueError: the id is in use, or the prompt is empty or holds unknown tokens.
        """
        if request.request_id in self._sequences:
            raise ValueError(f"request_id {request.request_id!r} is in use; give every query its own")
        check_prompt(request, self.target.lm.vocab_tokens, self.target.max_context_tokens)
        sequence = new_sequence(request, self.codec, self.config.outcomes.top_k if self.recorder else 0)
        self.scheduler.submit(sequence)
        self._sequences[request.request_id] = sequence

    def cancel(self, request_id: str) -> list[TokenDelta]:
        """Free a query's row at once; unknown or finished ids are ignored."""
        sequence = self._sequences.get(request_id)
        return [self._finish(sequence, "cancelled")] if sequence else []

    @property
    def has_work(self) -> bool:
        """True while a step would do something."""
        return self.scheduler.has_work

    def generate(self, prompts: list[str], params: SamplingParams | None = None) -> Iterator[TokenDelta]:
        """Answer prompts in this thread, yielding deltas as they come; `request_id` is the prompt's number."""
        for number, prompt in enumerate(prompts):
            ids = self.codec.encode_text(prompt)
            self.submit(Request(request_id=str(number), prompt_ids=ids, params=params or SamplingParams()))
        while self.has_work:
            yield from self.step()

    def load_drafter(self, manifest: WeightManifest, swap_in: SwapIn, *, watch: bool = True) -> None:
        """Hot swap: put a version that `drafter.prepare` made ready to use, between two steps."""
        assert self.drafter is not None
        before, started_s = self.drafter.version, time.perf_counter()
        swap_in()
        self._drafter_broken = False
        self.policy.acceptance.reset(manifest.gate)
        self.watch.swapped(watch=watch)
        self.counters.add("swaps_total")
        took_ms = (time.perf_counter() - started_s) * 1e3
        self._event("swap", f"drafter version {before} -> {manifest.number} in {took_ms:.1f} ms", took_ms=took_ms)

    def take_over(self, target: Target, drafter: Drafter | None, costs: Costs) -> None:
        """Serve by compiled kernels from here on, between two steps: every row goes on where it is.

        Args:
            target: of the same model; this engine's own where kernels do nothing for it.
            drafter: with the weights of the one that serves.
            costs: of rounds with these.
        """
        started_s = time.perf_counter()
        prefilling = [] if self.scheduler.prefilling is None else [self.scheduler.prefilling]
        self.rows.adopt(target, drafter, live=[*self.scheduler.decoding, *prefilling])
        self.target, self.drafter = target, drafter
        self.policy.use(costs)
        took_ms = (time.perf_counter() - started_s) * 1e3
        self._event("kernels", f"compiled kernels took over from torch in {took_ms:.1f} ms", took_ms=took_ms)

    def status(self) -> EngineStatus:
        """A snapshot."""
        return status_of(
            self.config,
            self.target,
            self.drafter,
            self.scheduler,
            self.counters,
            self.recorder,
            utilisation=self.utilisation.share(),
            speculation_length=self.policy.chosen,
            uptime_s=time.monotonic() - self._started_s,
        )

    def history(self, limit: int) -> list[AcceptancePoint]:
        """The newest finished queries, oldest first."""
        return list(self._history)[-limit:] if limit > 0 else []

    # ---- the loop --------------------------------------------------------------------------------------------------

    def step(self) -> list[TokenDelta]:
        """Read some prompt, or one round for every decoding row: propose, verify, commit, record.

        In turn: a query's first token need not wait for the round that follows, nor a round for prompts without end.
        """
        started_s = time.monotonic()
        deltas = [] if self._owes_round else self._prefill()
        self._owes_round = bool(deltas and self.scheduler.decoding)
        if not deltas and (rows := self.scheduler.decoding):
            lengths = self._choose(rows)
            self._clock.start()
            proposal = self._propose(rows, lengths)
            self._clock.drafted()
            committed, logits = self._verify(rows, proposal)
            deltas += self._commit(rows, proposal, committed, logits, self._clock.split_ms())
        self.utilisation.add_busy(started_s, time.monotonic())
        return deltas

    def _prefill(self) -> list[TokenDelta]:
        """Read up to a chunk of waiting prompts; a prompt that is read whole yields its first token."""
        deltas: list[TokenDelta] = []
        budget = self.config.engine.prefill_chunk_tokens
        while budget > 0 and (sequence := self.scheduler.next_prefill()) is not None:
            if sequence.num_cached == 0 and (ended := self._admit(sequence)):
                deltas.append(ended)
                continue
            started_s = time.perf_counter()
            start, row = sequence.num_cached, sequence.row
            end = min(start + budget, sequence.num_tokens)
            is_last = end == sequence.num_tokens
            ids_1Q = self.target.tokens_SL[row : row + 1, start:end]
            output = self.target.read(row, ids_1Q, [start], logits="last" if is_last else "none")
            sequence.num_cached, budget = end, budget - (end - start)
            if is_last:
                assert output.logits is not None
                [tokens] = verify_rows(output.logits, [sequence], None)
                if not tokens:
                    deltas.append(self._give_up(sequence))
                    continue
                self.scheduler.start_decoding()
                self.rows.hold(sequence)
                self.target.write_tokens(row, end, tokens)
                [top] = wanted_top_logprobs(output.logits, [tokens], [sequence.num_logprobs])
                deltas.append(self._emit(sequence, tokens, top))
            sequence.prefill_ms += (time.perf_counter() - started_s) * 1e3
        return deltas

    def _admit(self, sequence: Sequence) -> TokenDelta | None:
        """Give a query its row. A resumed one may turn out to have ended just before its engine died."""
        sequence.admitted_s = time.monotonic()
        if sequence.is_resumed and (
            reason := sequence.reason_to_finish(self.target.eos_ids, self.target.max_context_tokens)
        ):
            return self._finish(sequence, reason)
        self.rows.begin(sequence)
        return None

    def _choose(self, rows: list[Sequence]) -> list[int]:
        """Each row's speculation length, by goodput."""
        if self.drafter is None or self._drafter_broken:
            return [0] * len(rows)
        most, context_tokens = self.config.speculation.max_length, self.target.max_context_tokens
        for sequence in rows:
            budget, num_tokens = sequence.budget, sequence.num_tokens
            budget.limit = max(min(sequence.num_left - 1, context_tokens - num_tokens - 1, most), 0)
            budget.num_tokens = num_tokens
        wanted = self.watch.wants_rounds(sequence.request.request_id for sequence in rows)
        return self.policy.choose([row.budget for row in rows], at_least=int(wanted))

    def _propose(self, rows: list[Sequence], lengths: list[int]) -> Proposal | None:
        """Let the drafter guess so far."""
        if self.drafter is None or not any(lengths):
            return None
        drafted = rows[: max(row for row, length in enumerate(lengths) if length) + 1]
        batch = DraftBatch(
            tokens_SL=self.target.tokens_SL,
            hidden_SLH=self.target.hidden_SLH,
            num_tokens=[sequence.num_tokens for sequence in drafted],
            lengths=lengths[: len(drafted)],
            params=[sequence.request.params for sequence in drafted],
            generators=[sequence.generator for sequence in drafted],
        )
        try:
            return self.drafter.propose(batch).padded(len(rows))
        except Exception as error:  # no drafter may end a query: plain decoding until another version is swapped in
            self._drafter_broken = True
            self._event("error", f"drafter version {self.drafter.version} broke, decoding plainly: {error}")
            return None

    def _verify(self, rows: list[Sequence], proposal: Proposal | None) -> tuple[list[list[int]], Logits]:
        """One target pass over every row's last token and its proposal, and the tokens that each row may keep.

        A row keeps none where its logits are not finite, also when it is read again alone.
        """
        starts = [sequence.num_tokens - 1 for sequence in rows]
        last = [sequence.output_ids[-1] for sequence in rows]
        proposed_BK = None if proposal is None else proposal.of_length(max(proposal.lengths))
        output = self.target.read(0, prepended(last, proposed_BK), starts)
        assert output.logits is not None
        committed = verify_rows(output.logits, rows, proposal, rule=self.config.speculation.accept_rule)
        if not all(committed):
            read_again(self.target, rows, committed, output.logits)
        return committed, output.logits

    def _commit(
        self,
        rows: list[Sequence],
        proposal: Proposal | None,
        committed: list[list[int]],
        logits: Logits,
        times_ms: tuple[float, float],
    ) -> list[TokenDelta]:
        """Append what each row keeps; finish the rows that end here."""
        lengths = list(proposal.lengths) if proposal else [0] * len(rows)
        version = proposal.drafter_version if proposal else 0
        accepted = [max(len(tokens) - 1, 0) for tokens in committed]
        self.counters.add_times(*times_ms)
        self._learn(rows, lengths, accepted, *times_ms)
        self.target.write_rows([sequence.num_tokens for sequence in rows], committed)
        tops = wanted_top_logprobs(logits, committed, [sequence.num_logprobs for sequence in rows])
        deltas = []
        # From the last row on: a query that ends pulls the last one into its row, which must be committed by then.
        for index, sequence in reversed(list(enumerate(rows))):
            sequence.add_times(*times_ms)
            round_ = (version, lengths[index], accepted[index])
            tokens = committed[index]
            deltas.append(self._emit(sequence, tokens, tops[index], round_) if tokens else self._give_up(sequence))
        return deltas

    def _learn(
        self, rows: list[Sequence], proposed: list[int], accepted: list[int], draft_ms: float, verify_ms: float
    ) -> None:
        """Tell the policy and the swap watch how the round went."""
        budgets = [sequence.budget for sequence in rows]
        self.policy.observe(budgets, proposed, accepted, draft_ms=draft_ms, verify_ms=verify_ms)
        for sequence, num_proposed, num_accepted in zip(rows, proposed, accepted, strict=True):
            if num_proposed:
                self.watch.observe(sequence.request.request_id, num_accepted > 0)
        if any(proposed) and self.watch.verdict() == "worse" and self.drafter:
            before, after = self.watch.rates()
            reason = f"first-token acceptance fell from {before:.2f} to {after:.2f} after the swap"
            self.on_regression(self.drafter.version, reason)

    def _emit(
        self,
        sequence: Sequence,
        tokens: list[int],
        top: TopLogprobs | None,
        round_: tuple[int, int, int] | None = None,
    ) -> TokenDelta:
        """Commit tokens to one query (up to where it ends), keep what its outcome needs, and say what is new."""
        tokens, reason = sequence.cut(tokens, self.target.eos_ids, self.target.max_context_tokens)
        if round_ is None:  # the prefill's token belongs to no round
            sequence.kinds.append(BONUS)
            sequence.output_ids.extend(tokens)
        else:
            version, proposed, accepted = round_
            sequence.commit(tokens, proposed, min(accepted, len(tokens)), version)
            self.counters.add_round(version, proposed, min(accepted, len(tokens)), len(tokens))
        if top is not None and sequence.num_recorded:
            sequence.tops.append(top.cut(len(tokens), sequence.num_recorded))
        asked = sequence.request.params.logprobs
        logprobs = () if top is None or asked is None else top.cut(len(tokens), asked).for_client(tokens)
        if reason is not None:
            return self._finish(sequence, reason, tuple(tokens), logprobs)
        text = sequence.answer.take()
        return TokenDelta(request_id=sequence.request.request_id, token_ids=tuple(tokens), text=text, logprobs=logprobs)

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        tokens: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
        error: str | None = None,
    ) -> TokenDelta:
        """End a query: record its outcome, free its row."""
        sequence.finish_reason = reason
        stats = sequence.stats()
        # What a broken step left behind is nothing to learn from.
        if self.recorder and sequence.tops and reason != "error":
            maker = outcome_maker(
                sequence,
                stats,
                self.target,
                drafter_kind=self.drafter.kind if self.drafter else "none",
                prompt_hidden_tokens=self.config.outcomes.prompt_hidden_tokens,
                engine_id=self.config.engine.id,
            )
            self.recorder.record(maker)
        self.counters.add_query(stats, reason)
        self.policy.finished(stats.prompt_tokens, stats.output_tokens)
        if stats.rounds:
            self._history.append(acceptance_point(sequence, stats, int(self.counters.values["queries_total"])))
        text = sequence.answer.take(final=True)
        if reason != "error":
            self.rows.hold(sequence)
        self.scheduler.remove(sequence)
        del self._sequences[sequence.request.request_id]
        return TokenDelta(
            request_id=sequence.request.request_id,
            token_ids=tokens,
            text=text,
            logprobs=logprobs,
            finish_reason=reason,
            error=error,
            stats=stats,
        )

    def fail_all(self, error: str) -> list[TokenDelta]:
        """End every query with an error: a step broke, and their state can't be trusted."""
        deltas = [self._finish(sequence, "error", error=error) for sequence in list(self._sequences.values())]
        self.rows.clear()
        return deltas

    def _give_up(self, sequence: Sequence) -> TokenDelta:
        """End a query whose logits are not finite: no token can be chosen from them."""
        self._event("error", f"query {sequence.request.request_id} failed at token {sequence.num_tokens}: {NOT_FINITE}")
        self.rows.drop(sequence)
        return self._finish(sequence, "error", error=NOT_FINITE)

    def _event(self, kind: EventKind, message: str, **data: float | int | str) -> None:
        self.on_event(Event(at_s=time.time(), kind=kind, message=message, data=dict(data)))
