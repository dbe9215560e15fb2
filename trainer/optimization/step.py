"""One update of a student's weights: losses, gradients, clipping, optimizer. Used online and offline."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from osd.config.trainer import TrainerConfig
from trainer.examples.batches import Batch
from trainer.optimization.optimizers import create_optimizer, warmed_up
from trainer.students.student import Student

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of one step."""

    loss: float
    """Weighted mean over the positions trained on."""
    num_tokens: int
    """Output tokens trained on."""
    applied: bool
    """False: the loss or a gradient was NaN or infinite, and the weights were not changed."""


class TrainingStep:
    """Updates a student's weights.

    Args:
        student: the drafter to train.
        optimizer: over `student.parameters()`.
        learning_rate: after warm-up.
        warmup_steps: steps over which the learning rate rises.
        max_grad_norm: gradients are clipped to this norm (Pascanu et al. 2013, arXiv 1211.5063).
    """

    def __init__(
        self,
        student: Student,
        optimizer: torch.optim.Optimizer,
        *,
        learning_rate: float,
        warmup_steps: int,
        max_grad_norm: float,
    ) -> None:
        self._student, self.optimizer = student, optimizer
        self._learning_rate, self._warmup_steps, self._max_grad_norm = learning_rate, warmup_steps, max_grad_norm
        self.steps = 0
        """Steps applied to these weights with this optimizer; the warm-up goes by this."""
        self.skipped = 0
        """Steps skipped because the loss or a gradient was NaN or infinite."""

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return warmed_up(self._learning_rate, self.steps, self._warmup_steps)

    def run(
        self, batches: Sequence[Batch], between: Callable[[], None] = lambda: None, *, scale: float = 1.0
    ) -> StepResult:
        """Make one update from all batches together.

        Args:
            batches: at least one, with at least one position in the loss.
            between: called after each batch, so that the caller can yield the machine.
            scale: multiplies the learning rate.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total_loss = total_weight = 0.0
        for batch in batches:
            terms = self._student.loss_terms(batch)
            loss = (terms.losses_N * terms.weights_N).sum()
            torch.autograd.backward(loss)
            total_loss += loss.item()
            total_weight += terms.weights_N.sum().item()
            between()
        applied = self._update(total_weight, scale)
        return StepResult(total_loss / total_weight, sum(int(batch.in_loss_BQ.sum()) for batch in batches), applied)

    def _update(self, total_weight: float, scale: float) -> bool:
        parameters = [parameter for parameter in self._student.parameters() if parameter.grad is not None]
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad /= total_weight  # from sums over positions to the weighted mean
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._max_grad_norm)
        # A NaN or infinite loss makes the gradients' norm NaN or infinite.
        applied = bool(norm.isfinite())
        if applied:
            for group in self.optimizer.param_groups:
                group["lr"] = scale * self.learning_rate
            self.optimizer.step()
            self.steps += 1
        else:
            self.skipped += 1
            _log.warning("training step skipped: its loss or gradients are not finite (%d so far)", self.skipped)
        self.optimizer.zero_grad(set_to_none=True)
        return applied


def new_training_step(config: TrainerConfig, student: Student) -> TrainingStep:
    """A student's training step with a new optimizer, as configured.

    Raises:
        ConfigError: the optimizer or its options are unknown.
    """
    optimizer = create_optimizer(config.optimizer, student.parameters(), config.learning_rate, config.optimizer_options)
    return TrainingStep(
        student,
        optimizer,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        max_grad_norm=config.max_grad_norm,
    )
