"""Training beside serving on one CUDA device. Run with `pytest -m gpu` where there is one."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.shared_device import main

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_engine_and_trainer_share_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--shape 135m --seconds 1 --blocks 1 --tokens 32 --context 32 --loads open --device cuda --json"
    main(options.split())
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["machine"]["gpu"]
    by_mode = report["loads"]["open"]
    assert by_mode["paused"]["steps"] == 0 < by_mode["always"]["steps"]
    assert all(at["tpot_p50_ms"] > 0 for at in by_mode.values())
