"""Sampling defaults from a model's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from osd.records.errors import OsdError
from osd.records.query import SamplingParams
from osd.text.generation_config import SamplingDefaults, sampling_defaults
from serving.answering.sampling import sampling_params
from serving.wire.chat_request import ChatRequest
from tests.kit.fakes import FakeCodec
from tests.kit.http_client import CHAT

_CONFIG = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.05, "max_new_tokens": 99, "x": 1}
_DEFAULTS = SamplingDefaults(temperature=0.6, top_p=0.95, top_k=20, repetition_penalty=1.05, max_new_tokens=99)


def _write(folder: Path, content: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "generation_config.json").write_text(json.dumps(content))
    return folder


def test_the_models_own_are_taken_unless_told_otherwise(tmp_path: Path) -> None:
    folder = _write(tmp_path / "model", _CONFIG)
    assert sampling_defaults(folder, "auto") == _DEFAULTS
    assert sampling_defaults(folder, "osd") == sampling_defaults(folder, "vllm") == SamplingDefaults()
    assert sampling_defaults(folder, str(_write(tmp_path / "other", {"min_p": 0.1}))) == SamplingDefaults(min_p=0.1)


def test_a_model_without_any_has_the_apis(tmp_path: Path) -> None:
    assert sampling_defaults(tmp_path, "auto") == SamplingDefaults()
    assert sampling_defaults(_write(tmp_path / "empty", []), "auto") == SamplingDefaults()


@pytest.mark.parametrize(("name", "value"), [("temperature", 3), ("top_p", 0), ("top_k", "5"), ("min_p", True)])
def test_values_out_of_range_are_no_defaults(
    tmp_path: Path, name: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert sampling_defaults(_write(tmp_path / "odd", {name: value}), "auto") == SamplingDefaults()
    assert name in caplog.text


def test_a_folder_that_was_named_must_hold_the_file(tmp_path: Path) -> None:
    with pytest.raises(OsdError, match=r"target.generation_config.*generation_config.json"):
        sampling_defaults(tmp_path, str(tmp_path / "nowhere"))
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(OsdError, match="cannot read"):
        sampling_defaults(tmp_path, "auto")


def test_what_a_request_says_comes_before_the_defaults() -> None:
    codec = FakeCodec()
    codec.sampling_defaults = _DEFAULTS

    def params(**fields: Any) -> SamplingParams:
        body = ChatRequest.model_validate({**CHAT, **fields})
        return sampling_params(body, codec, max_tokens=5, logprobs=None, prompt_logprobs=None)

    left_out = params(top_p=None)
    assert (left_out.temperature, left_out.top_p, left_out.top_k, left_out.repetition_penalty) == (0.6, 0.95, 20, 1.05)
    said = params(temperature=1.0, top_p=1.0, top_k=0, repetition_penalty=1.0)
    assert said == SamplingParams(max_tokens=5)
