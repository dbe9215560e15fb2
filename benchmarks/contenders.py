"""The contenders of `benchmarks.decode`: osd's engine and its peers, each doing the same jobs in its own process.

A contender decodes a batch of prompts (token ids), greedily or by sampling, and reports the time from the moment every
row had its first token to the end. Prefill is therefore not included.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.instruments import RoundEnds
from osd.records.rules import AcceptRule

TEMPERATURE, TOP_P = 0.8, 0.95
_CACHE_SHARE = 0.05
"""Share of the memory for the cache; by default generate_batch takes all there is, and the system kills it."""


@dataclass(frozen=True, slots=True)
class Job:
    """A batch of prompts."""

    prompts: list[list[int]]
    max_tokens: int
    sampled: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """The result of one job."""

    decoded_tokens: int
    """Tokens after the first of each row."""
    decode_s: float
    rounds: int = 0
    committed: int = 0
    """Tokens committed in those rounds; committed / row_rounds is the acceptance length."""
    row_rounds: int = 0
    """Rounds, each counted once for every row in it."""
    proposed: int = 0
    draft_s: float = 0.0
    verify_s: float = 0.0
    """Time in the target's passes; for osd on a GPU including the verdicts."""

    @classmethod
    def of_engine(
        cls, before: dict[str, float], after: dict[str, float], *, decoded_tokens: int, decode_s: float, rounds: int
    ) -> Run:
        """From osd's counters before and after the job."""
        counted = {name: value - before.get(name, 0) for name, value in after.items()}
        return cls(
            decoded_tokens=decoded_tokens,
            decode_s=decode_s,
            rounds=rounds,
            committed=int(counted["committed_total"]),
            row_rounds=int(counted["rounds_total"]),
            proposed=int(counted["proposed_total"]),
            draft_s=counted["draft_seconds_total"],
            verify_s=counted["verify_seconds_total"],
        )


@dataclass(frozen=True, slots=True)
class Setting:
    """The settings of a comparison, the same for every contender."""

    target: str
    """As for `osd serve --target`; drafter versions are stored under it."""
    folder: str
    """The target's folder, as written by `save_pretrained`."""
    state_dir: str
    gguf: str
    threads: int
    dtype: str
    device: str
    max_rows: int
    """The largest batch."""
    speculation_length: int | None = None
    """Fixed speculation length; None: osd's default choice."""
    eos_ids: list[int] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The settings for the worker's command line."""
        return asdict(self)


class MissingPeerError(Exception):
    """A peer is not installed or cannot do a job; the message says what to install."""


class Contender(Protocol):
    """One way of decoding."""

    def run(self, job: Job) -> Run:
        """Decode.

        Raises:
            MissingPeerError: the contender cannot do this kind of job.
        """
        ...


class Osd:
    """osd's engine.

    Args:
        setting: the comparison's settings.
        speculate: False decodes without speculation.
        kind: kind of the drafter, whose latest version in the state folder is used; it is not trained.
        untrained: use a new random drafter instead.
        accept_rule: how proposals of sampled queries are accepted.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        speculate: bool = True,
        kind: str = "feature",
        untrained: bool = False,
        accept_rule: AcceptRule = "token",
    ) -> None:
        from benchmarks.instruments import DiscardingRecorder, PassClock
        from osd.assembly.engine import open_engine
        from osd.config.settings import load_config

        state_dir = Path(setting.state_dir)
        sections = {
            "target": {
                "model": setting.target,
                "dtype": setting.dtype,
                "device": setting.device,
                "threads": setting.threads,
            },
            "engine": {"max_slots": setting.max_rows, "prefill_chunk_tokens": 1024},
            "speculation": {
                "enabled": speculate,
                "fixed_length": setting.speculation_length,
                "accept_rule": accept_rule,
            },
            "drafter": {"kind": kind, "pretrained": not untrained},
            "state_dir": state_dir / "benchmark-untrained" if untrained else state_dir,
        }
        self._engine = open_engine(load_config(flags=sections), recorder=DiscardingRecorder())
        target = self._engine.target
        self._passes = PassClock(target) if target.lm.device.type == "cpu" else None
        self._number = 0

    def run(self, job: Job) -> Run:
        """Decode."""
        from osd.records.query import Request, SamplingParams

        sampling = {"temperature": TEMPERATURE, "top_p": TOP_P, "seed": 1} if job.sampled else {"temperature": 0.0}
        params = SamplingParams(max_tokens=job.max_tokens, **sampling)  # type: ignore[arg-type]  # of several types
        for prompt in job.prompts:
            self._number += 1
            self._engine.submit(Request(request_id=str(self._number), prompt_ids=tuple(prompt), params=params))
        waiting = set(map(str, range(self._number - len(job.prompts) + 1, self._number + 1)))
        before, decoded, started_s, rounds, passes_s = dict(self._engine.counters.values), 0, 0.0, 0, 0.0
        while self._engine.has_work:
            deltas = self._engine.step()
            if started_s:
                decoded += sum(len(delta.token_ids) for delta in deltas)
                rounds += 1
                continue
            waiting -= {delta.request_id for delta in deltas if delta.token_ids}
            if not waiting:
                started_s, before = time.perf_counter(), dict(self._engine.counters.values)
                passes_s = self._passes.total_s if self._passes else 0.0
        decode_s = time.perf_counter() - started_s
        after = self._engine.counters.values
        run = Run.of_engine(before, after, decoded_tokens=decoded, decode_s=decode_s, rounds=rounds)
        # On a CPU the passes are timed alone; the engine's own figure includes sampling.
        return replace(run, verify_s=self._passes.total_s - passes_s) if self._passes else run


class Transformers:
    """Transformers' `generate`, plain or in one of its speculative modes.

    Args:
        setting: the comparison's settings.
        assistant: "" (plain), "model" (osd's derived small LM as the assistant) or "prompt_lookup".
    """

    def __init__(self, setting: Setting, *, assistant: str = "") -> None:
        self._model = _load(setting)
        self._assistant = assistant
        self._extra: dict[str, Any] = {}
        if assistant == "model":
            self._extra = {"assistant_model": _derived_drafter(setting)}
        elif assistant == "prompt_lookup":
            self._extra = {"prompt_lookup_num_tokens": 4}

    def run(self, job: Job) -> Run:
        """Decode."""
        if self._assistant and len(job.prompts) > 1:
            raise MissingPeerError("transformers speculates at batch 1 only")
        device = self._model.device
        longest = max(map(len, job.prompts))
        pad = self._model.generation_config.pad_token_id or 0
        ids_BL = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in job.prompts], device=device)
        mask_BL = torch.tensor(
            [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in job.prompts], device=device
        )
        ends = RoundEnds()
        output_BL = self._model.generate(
            input_ids=ids_BL,
            attention_mask=mask_BL,
            max_new_tokens=job.max_tokens,
            streamer=ends,
            pad_token_id=pad,
            **_generation(job),
            **self._extra,
        )
        ended_s = time.perf_counter()
        lengths = [
            _until_eos(row, self._model.generation_config.eos_token_id) for row in output_BL[:, longest:].tolist()
        ]
        # The first round gave each row one token, or several if it speculated.
        decoded, rounds = sum(lengths) - ends.num_tokens[0] * len(job.prompts), len(ends.at_s) - 1
        return Run(
            decoded_tokens=decoded,
            decode_s=ended_s - ends.at_s[0],
            rounds=rounds,
            committed=decoded,
            row_rounds=rounds * len(job.prompts),
        )


class ContinuousBatching:
    """Transformers' `generate_batch`. Prefill is measured by a run of one token, and subtracted."""

    def __init__(self, setting: Setting) -> None:
        self._model = _load(setting)

    def run(self, job: Job) -> Run:
        """Decode."""
        first_s, _ = self._timed(job, 1)
        all_s, tokens = self._timed(job, job.max_tokens)
        return Run(decoded_tokens=tokens - len(job.prompts), decode_s=max(all_s - first_s, 1e-9))

    def _timed(self, job: Job, max_tokens: int) -> tuple[float, int]:
        from transformers import GenerationConfig
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        options = _generation(job)
        config = GenerationConfig(
            max_new_tokens=max_tokens,
            eos_token_id=self._model.generation_config.eos_token_id,
            pad_token_id=self._model.generation_config.pad_token_id,
            **options,
        )
        started_s = time.perf_counter()
        try:
            outputs = self._model.generate_batch(
                inputs=job.prompts,
                generation_config=config,
                continuous_batching_config=ContinuousBatchingConfig(max_memory_percent=_CACHE_SHARE),
            )
        except Exception as error:  # not available in every release and on every device
            raise MissingPeerError(f"transformers' generate_batch fails here: {error}") from error
        tokens = sum(len(output.generated_tokens) for output in outputs.values())
        return time.perf_counter() - started_s, tokens


def _load(setting: Setting) -> Any:
    from osd.loading.causal_lm import choose_device, choose_dtype, load_causal_lm
    from osd.loading.stored import stored_in

    torch.set_num_threads(setting.threads)
    device = choose_device(setting.device)
    folder = Path(setting.folder)
    return load_causal_lm(folder, dtype=choose_dtype(setting.dtype, device, stored_in(folder)), device=device)


def _derived_drafter(setting: Setting) -> Any:
    """The small LM that osd's `model` drafter is derived from."""
    from osd.config.settings import load_config
    from osd.drafters.create import new_drafter_model
    from osd.loading.causal_lm import choose_device, choose_dtype
    from osd.loading.stored import stored_in

    config = load_config(flags={"drafter": {"kind": "model"}, "state_dir": setting.state_dir})
    device = choose_device(setting.device)
    folder = Path(setting.folder)
    return new_drafter_model(config, folder).to(device, choose_dtype(setting.dtype, device, stored_in(folder)))


def _generation(job: Job) -> dict[str, Any]:
    if not job.sampled:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P, "top_k": 0}


def _until_eos(ids: list[int], eos: int | list[int] | None) -> int:
    ends = set(eos) if isinstance(eos, list) else {eos}
    return next((number for number, token in enumerate(ids, start=1) if token in ends), len(ids))
