"""The slot cache gives the same logits and hidden states as transformers' own models, whatever the rows look like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from osd.kernels.reference.attention import look_back
from osd.models.plain_passes import PlainPasses
from osd.models.slot_model import SlotModel
from osd.records.errors import OsdError
from tests.kit.backends import fastest
from tests.kit.engine_kit import plain_hidden, plain_logits
from tests.kit.small_shape import SMALL_SHAPE

_VOCAB = 32
_WINDOW = 6
_SHAPE: dict[str, Any] = SMALL_SHAPE | {"vocab_size": _VOCAB}


_EAGER = {**_SHAPE, "attn_implementation": "eager"}


def _gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=_VOCAB,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            attn_implementation="sdpa",
            bos_token_id=None,
            eos_token_id=None,
        )
    )


_MAKERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SHAPE)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**_SHAPE)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_SHAPE, head_dim=8)),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**_SHAPE, sliding_window=_WINDOW)),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(
            **_SHAPE, head_dim=8, sliding_window=_WINDOW, layer_types=["sliding_attention", "full_attention"]
        )
    ),
    "gpt2": _gpt2,
    "opt": lambda: transformers.OPTForCausalLM(
        transformers.OPTConfig(**_SHAPE, ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False)
    ),
    # Both have no torch attention in transformers: one caps its scores, one has sinks.
    "gemma2": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**_EAGER, head_dim=8, sliding_window=_WINDOW, attn_logit_softcapping=2.0)
    ),
    "gpt_oss": lambda: transformers.GptOssForCausalLM(
        transformers.GptOssConfig(
            **_EAGER, head_dim=8, sliding_window=_WINDOW, num_local_experts=4, num_experts_per_tok=2
        )
    ),
}


def _tiny(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Weights wide enough that a wrong mask or position shows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _MAKERS[name]()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0.0, 0.3)
    return model.to(dtype).eval().requires_grad_(False)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=list(_MAKERS))
def model(request: pytest.FixtureRequest) -> Any:
    return _tiny(request.param)


@pytest.fixture
def slots(model: Any) -> SlotModel:
    return _slots(model)


def _slots(model: Any, num_slots: int = 3) -> SlotModel:
    return SlotModel(model, fastest(), num_slots=num_slots, max_context_tokens=40, max_new_tokens=16)


def _ids(length: int, seed: int) -> Tensor:
    return torch.randint(0, _VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


def _read(slots: SlotModel, row: int, ids: Tensor, start: int = 0) -> None:
    slots.forward(row, ids[None], [start], logits="none")


def _assert_plain(slots: SlotModel, output: Any, offset: int, ids: Tensor, start: int) -> None:
    """Row `offset` of a pass that read `ids[start:]` says what the plain model says there."""
    num_new = len(ids) - start
    expected_LV, expected_LH = plain_logits(slots.model, ids.tolist()), plain_hidden(slots.model, ids.tolist())
    torch.testing.assert_close(output.logits_BQV[offset, :num_new], expected_LV[start:], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(output.hidden_BQH[offset, :num_new], expected_LH[start:], atol=2e-5, rtol=1e-4)


def _ragged_pass(slots: SlotModel, rows: list[Tensor], starts: list[int], first_row: int = 0) -> Any:
    """One pass over rows of different starts and lengths, padded with a token that must not matter."""
    num_new = max(len(ids) - start for ids, start in zip(rows, starts, strict=True))
    ids_BQ = torch.full((len(rows), num_new), 7)
    for index, (ids, start) in enumerate(zip(rows, starts, strict=True)):
        ids_BQ[index, : len(ids) - start] = ids[start:]
    return slots.forward(first_row, ids_BQ, starts)


def test_ragged_rows_in_one_padded_pass(slots: SlotModel) -> None:
    rows, starts = [_ids(25, 1), _ids(13, 2), _ids(20, 3)], [18, 12, 11]
    for row, (ids, start) in enumerate(zip(rows, starts, strict=True)):
        _read(slots, row, ids[:start])
    output = _ragged_pass(slots, rows, starts)
    for row, (ids, start) in enumerate(zip(rows, starts, strict=True)):
        _assert_plain(slots, output, row, ids, start)


def test_padding_left_behind_is_overwritten(slots: SlotModel) -> None:
    rows, starts = [_ids(30, 1), _ids(24, 2)], [10, 5]
    for row, (ids, start) in enumerate(zip(rows, starts, strict=True)):
        _read(slots, row, ids[:start])
    for widths in ((7, 1), (2, 5), (1, 1)):
        ends = [start + width for start, width in zip(starts, widths, strict=True)]
        parts = [ids[:end] for ids, end in zip(rows, ends, strict=True)]
        output = _ragged_pass(slots, parts, starts)
        for row, (ids, start) in enumerate(zip(parts, starts, strict=True)):
            _assert_plain(slots, output, row, ids, start)
        starts = ends


def test_chunked_prefill(slots: SlotModel) -> None:
    ids, start = _ids(31, 4), 0
    for chunk in (5, 1, 9, 2, 14):
        output = slots.forward(1, ids[None, start : start + chunk], [start])
        _assert_plain(slots, output, 0, ids[: start + chunk], start)
        start += chunk
    assert start == len(ids)


def test_a_rolled_back_proposal_leaves_nothing_behind(slots: SlotModel) -> None:
    rows = [_ids(14, 5), _ids(22, 6)]
    for row, ids in enumerate(rows):
        _read(slots, row, ids)
    # Five proposed tokens each; two of them are kept in row 0, none in row 1.
    proposed = [torch.cat((ids, _ids(5, 60 + row))) for row, ids in enumerate(rows)]
    _ragged_pass(slots, proposed, [14, 22])
    kept = [torch.cat((proposed[0][:16], _ids(3, 71))), torch.cat((proposed[1][:22], _ids(2, 72)))]
    output = _ragged_pass(slots, kept, [16, 22])
    for row, (ids, start) in enumerate(zip(kept, (16, 22), strict=True)):
        _assert_plain(slots, output, row, ids, start)


def test_a_moved_row_goes_on_where_it_was(slots: SlotModel) -> None:
    others, ids = _ids(28, 8), _ids(19, 9)
    _read(slots, 0, others)
    _read(slots, 2, ids[:15])
    slots.swap_rows(2, 0, 15)
    output = slots.forward(0, ids[None, 15:], [15])
    _assert_plain(slots, output, 0, ids, 15)


def test_rows_that_changed_places_are_read_together(slots: SlotModel) -> None:
    rows = [_ids(12, 30), _ids(17, 31), _ids(21, 32)]
    for row, ids in enumerate(rows):
        _read(slots, row, ids[:-3])
    slots.swap_rows(2, 0, 18)
    slots.swap_rows(2, 1, 14)
    now = [rows[2], rows[0], rows[1]]
    starts = [len(ids) - 3 for ids in now]
    output = _ragged_pass(slots, now, starts)
    for row, (ids, start) in enumerate(zip(now, starts, strict=True)):
        _assert_plain(slots, output, row, ids, start)


def test_a_copied_beginning_goes_on_otherwise_than_its_source(slots: SlotModel) -> None:
    """Also where both have changed places before, so that their rows are not where they were made."""
    first, second = _ids(21, 33), _ids(17, 34)
    second[:11] = first[:11]
    _read(slots, 2, first[:18])
    slots.swap_rows(2, 0, 18)
    slots.copy_row(0, 1, 11)
    _read(slots, 1, second[11:14], start=11)
    output = _ragged_pass(slots, [first, second], [18, 14])
    for row, (ids, start) in enumerate(((first, 18), (second, 14))):
        _assert_plain(slots, output, row, ids, start)


def test_rows_in_the_middle_of_the_cache(slots: SlotModel) -> None:
    rows, starts = [_ids(12, 10), _ids(17, 11)], [9, 16]
    for row, (ids, start) in enumerate(zip(rows, starts, strict=True), start=1):
        _read(slots, row, ids[:start])
    output = _ragged_pass(slots, rows, starts, first_row=1)
    for row, (ids, start) in enumerate(zip(rows, starts, strict=True)):
        _assert_plain(slots, output, row, ids, start)


def test_the_last_logits_only(slots: SlotModel) -> None:
    ids = _ids(9, 12)
    last = slots.forward(0, ids[None], [0], logits="last").logits_BQV
    assert last is not None
    torch.testing.assert_close(last[0, 0], plain_logits(slots.model, ids.tolist())[-1], atol=2e-5, rtol=1e-4)
    assert slots.forward(0, ids[None], [0], logits="none").logits is None


def test_a_pass_at_the_very_end_of_the_context(slots: SlotModel) -> None:
    """Padding of a short row reaches beyond the context; the positions that count are right all the same."""
    full, short = _ids(40, 13), _ids(20, 14)
    _read(slots, 0, full[:39])
    _read(slots, 1, short[:12])
    output = _ragged_pass(slots, [full, short], [39, 12])
    _assert_plain(slots, output, 0, full, 39)
    _assert_plain(slots, output, 1, short, 12)


@pytest.mark.parametrize("name", list(_MAKERS))
def test_bfloat16_stays_close(name: str) -> None:
    slots = _slots(_tiny(name, torch.bfloat16))
    rows, starts = [_ids(25, 1), _ids(14, 2)], [18, 9]
    for row, (ids, start) in enumerate(zip(rows, starts, strict=True)):
        _read(slots, row, ids[:start])
    output = _ragged_pass(slots, rows, starts)
    for row, (ids, start) in enumerate(zip(rows, starts, strict=True)):
        ours_QV = output.logits_BQV[row, : len(ids) - start].float()
        plain_QV = plain_logits(slots.model, ids.tolist())[start:]
        assert (ours_QV - plain_QV).abs().mean() < 0.05 * plain_QV.std()


def test_the_context_is_no_longer_than_the_model_allows() -> None:
    slots = SlotModel(_tiny("llama"), fastest(), num_slots=1, max_context_tokens=4096, max_new_tokens=8)
    assert slots.max_context_tokens == 64


# ---- models that cannot be served ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a kernel package that transformers probes for
def test_a_model_without_an_attention_cache_is_refused() -> None:
    model = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=_VOCAB, hidden_size=32, num_hidden_layers=2, eos_token_id=None)
    ).eval()
    with pytest.raises(OsdError, match="MambaForCausalLM cannot be served: .*standard attention"):
        _slots(model)


def test_a_window_is_checked_beyond_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that looks back too far is right as long as no row is longer than the window."""
    config = transformers.Starcoder2Config(**{**_SHAPE, "sliding_window": 20})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.Starcoder2ForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(1))
    assert not _slots(model).is_fused
    monkeypatch.setattr("osd.models.plain_passes.look_back", lambda window, reach: look_back(window, None))
    with pytest.raises(
        OsdError, match="Starcoder2ForCausalLM cannot be served: its logits over the slot cache are off"
    ):
        _slots(model)


def test_hidden_states_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drafter reads them, and training does."""
    right = PlainPasses.read

    def doubled(self: PlainPasses, *args: Any, **options: Any) -> Any:
        output = right(self, *args, **options)
        return output._replace(hidden=lambda: 2 * output.hidden_BQH)

    monkeypatch.setattr(PlainPasses, "read", doubled)
    with pytest.raises(OsdError, match="its last hidden states over the slot cache are off by 1 of their norm"):
        _slots(_tiny("gpt2"))


def test_hidden_states_that_are_elsewhere_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """OPT's decoder is called past its base model, so that a hook on that one keeps nothing."""
    monkeypatch.setattr(transformers.OPTForCausalLM, "get_decoder", lambda self: self.model)
    with pytest.raises(OsdError, match="OPTForCausalLM cannot be served: its last hidden states are not where"):
        _slots(_tiny("opt"))


def test_logits_that_are_no_numbers_are_refused() -> None:
    model = _tiny("gpt2")
    model.get_input_embeddings().weight[:] = torch.nan
    with pytest.raises(
        OsdError, match="GPT2LMHeadModel cannot be served: its logits are NaN or infinite in torch.float32"
    ):
        _slots(model)


def test_a_model_that_makes_its_own_mask_is_refused() -> None:
    """GPT-Neo is right over this cache while all rows stand at one position, and wrong once they do not."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.GPTNeoForCausalLM(
            transformers.GPTNeoConfig(
                vocab_size=_VOCAB,
                hidden_size=32,
                num_layers=2,
                num_heads=4,
                attention_types=[[["global", "local"], 1]],
                window_size=_WINDOW,
                max_position_embeddings=64,
                bos_token_id=None,
                eos_token_id=None,
                initializer_range=0.3,
            )
        ).eval()
    with pytest.raises(OsdError, match="GPTNeoForCausalLM cannot be served: its logits over the slot cache are off"):
        _slots(model)


def test_a_model_with_a_layer_type_of_its_own_is_refused() -> None:
    """Llama 4 attends within chunks: right over this cache up to the first chunk's end, wrong beyond."""
    config = transformers.Llama4TextConfig(**_SHAPE, intermediate_size_mlp=48, head_dim=8, num_local_experts=2)
    assert config.attention_chunk_size > 40
    with pytest.raises(OsdError, match="Llama4ForCausalLM cannot be served: it has chunked_attention layers"):
        _slots(transformers.Llama4ForCausalLM(config).eval())
