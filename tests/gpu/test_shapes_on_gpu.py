"""The benchmark of shapes on a CUDA device, at a real model's size. Run with `pytest -m gpu` where there is one."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks.shapes import main

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_speculation_on_a_large_shape_answers_as_plain_decoding_does(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--shape 1b --batch 1 4 --tokens 32 --context 32 --repeats 1 --device cuda --json"
    main(options.split())
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["machine"]["gpu"]
    for figures in report["batches"].values():
        assert figures["equal_to_plain"] == 1.0
        bound = 4 * math.sqrt(0.72 * 0.28 / figures["judged_tokens"])
        assert abs(figures["acceptance"] - 0.72) <= bound


def test_a_small_lm_drafts_and_assists(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--shape 1b --drafter model --batch 1 2 --tokens 32 --context 32 --repeats 1 --device cuda --json"
    main(options.split())
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not report["missing"] and report["drafter"] == "model"
    assert report["batches"]["1"]["assisted_equal_to_plain"] == 1.0
    assert all(figures["equal_to_plain"] == 1.0 for figures in report["batches"].values())
