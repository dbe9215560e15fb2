"""A drafter with a set acceptance rate, for benchmarks only: it knows the answers in advance.

The speed of speculation depends on the cost of drafting and on acceptance. A drafter with random weights has the right
cost but no acceptance; here such a drafter runs, and the tokens that it proposes are replaced.

Shapes: B rows, L positions, K proposed tokens, N answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from osd.machine.arrays import tensor
from osd.machine.transfer import upload
from osd.ports.drafter import Drafter, SwapIn, Swappable
from osd.records.drafter_id import DrafterId
from osd.records.proposal import DraftBatch, Proposal

_NOT_LOOKED_UP, _NO_ANSWER = -2, -1


def spoilt(known_NL: Tensor, vocab_tokens: int, acceptance: float, generator: torch.Generator) -> Tensor:
    """The tokens `[N, L]`, each kept with probability `acceptance` and else replaced by a random other one."""
    others_NL = torch.randint(1, vocab_tokens, known_NL.shape, generator=generator)
    keeps_NL = torch.rand(known_NL.shape, generator=generator) < acceptance
    return torch.where(keeps_NL, known_NL, (known_NL + others_NL) % vocab_tokens)


class SyntheticDrafter:
    """Runs a drafter, and proposes the target's own greedy tokens, each made wrong with a set probability.

    Whether a token is wrong is drawn once per answer; no position is verified twice, since a verified token is
    either committed or replaced.

    Args:
        drafter: its whole `propose` runs each round, for its cost.
        device: where it runs.
        num_slots: rows.
        vocab_tokens: the target's; a wrong token is any but the right one.
        acceptance: the probability that a proposed token is right.
        seed: of which tokens are wrong.
    """

    needs_hidden = False

    def __init__(
        self, drafter: Drafter, *, device: torch.device, num_slots: int, vocab_tokens: int, acceptance: float, seed: int
    ) -> None:
        self.id = DrafterId("synthetic", drafter.id.version)
        self._drafter, self._device = drafter, device
        self._vocab_tokens, self._acceptance = vocab_tokens, acceptance
        self._generator = torch.Generator().manual_seed(seed)
        self._answer_of_prompt: dict[tuple[int, ...], int] = {}
        self._prompt_tokens = 0
        self._spoilt_NL = torch.zeros(1, 1, dtype=torch.long, device=device)
        self._answer_of_row = [_NOT_LOOKED_UP] * num_slots
        self._index_B1: Tensor | None = None

    def remember(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> None:
        """Store the target's greedy answers, with newly drawn wrong tokens; forgets earlier answers.

        Args:
            prompts: all of one length.
            answers: all of one length.
        """
        known_NL = torch.tensor([[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)])
        self._spoilt_NL = spoilt(known_NL, self._vocab_tokens, self._acceptance, self._generator).to(self._device)
        self._answer_of_prompt = {tuple(prompt): number for number, prompt in enumerate(prompts)}
        self._prompt_tokens = len(prompts[0])
        self._answer_of_row = [_NOT_LOOKED_UP] * len(self._answer_of_row)
        self._index_B1 = None

    def adopt(self, other: Drafter) -> None:
        """See `Drafter`."""
        assert isinstance(other, SyntheticDrafter)
        self._drafter.adopt(other._drafter)
        self._answer_of_row = other._answer_of_row

    def propose(self, batch: DraftBatch) -> Proposal:
        """The drafter's own round, with its tokens replaced; rows with an unknown prompt keep them.

        Raises:
            ValueError: a row is sampled.
        """
        if not all(params.is_greedy for params in batch.params):
            raise ValueError("the synthetic drafter knows greedy answers only")
        proposal = self._drafter.propose(batch)
        answers = self._answers(batch)
        ids_BK = tensor(proposal.token_ids_BK)
        if any(number >= 0 for number in answers):
            starts_B1 = upload(batch.num_tokens, self._device)[:, None]
            positions_BK = starts_B1 + torch.arange(ids_BK.shape[1], device=self._device)
            assert self._index_B1 is not None
            told_BK = self._spoilt_NL[self._index_B1, positions_BK.clamp(max=self._spoilt_NL.shape[1] - 1)]
            is_told = _NO_ANSWER not in answers
            ids_BK = told_BK if is_told else torch.where(self._index_B1 >= 0, told_BK, ids_BK)
        return replace(proposal, token_ids_BK=ids_BK, drafter=self.id)

    def _answers(self, batch: DraftBatch) -> list[int]:
        """The index of each row's answer. Reads from the device only in a query's first round."""
        num_rows = len(batch.num_tokens)
        new = [row for row in range(num_rows) if self._answer_of_row[row] == _NOT_LOOKED_UP]
        if new:
            prompts = batch.tokens_SL[new, : self._prompt_tokens].tolist()
            for row, prompt in zip(new, prompts, strict=True):
                self._answer_of_row[row] = self._answer_of_prompt.get(tuple(prompt), _NO_ANSWER)
        answers = self._answer_of_row[:num_rows]
        if self._index_B1 is None or len(self._index_B1) != num_rows:
            self._index_B1 = upload(answers, self._device)[:, None]
        return answers

    def reset_row(self, row: int) -> None:
        """A new query starts in the row."""
        self._drafter.reset_row(row)
        self._answer_of_row[row], self._index_B1 = _NOT_LOOKED_UP, None

    def swap_rows(self, row: int, other: int) -> None:
        """Exchange the state of two rows."""
        self._drafter.swap_rows(row, other)
        answers, self._index_B1 = self._answer_of_row, None
        answers[row], answers[other] = answers[other], answers[row]

    def state(self) -> dict[str, Tensor]:
        """The wrapped drafter's state."""
        assert isinstance(self._drafter, Swappable)
        return self._drafter.state()

    def prepare(self, state: Mapping[str, Tensor], version: int) -> SwapIn:
        """The wrapped drafter's swap."""
        assert isinstance(self._drafter, Swappable)
        swap_in = self._drafter.prepare(state, version)

        def both() -> None:
            swap_in()
            self.id = DrafterId("synthetic", version)

        return both
