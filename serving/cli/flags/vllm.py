"""Options of `vllm serve` that are no settings of osd, so that a command line which users have goes on working.

Those that ask for what osd does anyway are taken. Others are refused with what to do instead.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from osd.records.errors import OsdError

SWITCHES = (
    "--enable-auto-tool-choice",
    "--enable-chunked-prefill",
    "--enable-prompt-tokens-details",
    "--disable-log-requests",
    "--no-enable-log-requests",
    "--disable-uvicorn-access-log",
)
"""osd always does this."""
_ONE_DEVICE = "a target is computed on one device; several engines share the load in a Ray cluster (docs/cluster.md)"
ONLY = {
    "--tensor-parallel-size": ("1", _ONE_DEVICE),
    "--pipeline-parallel-size": ("1", _ONE_DEVICE),
    "--data-parallel-size": ("1", _ONE_DEVICE),
    "--tokenizer-mode": ("auto", "the tokenizer is the target's own; leave it out"),
    "--kv-cache-dtype": ("auto", "the KV cache has the dtype of the computation; leave it out"),
    "--max-logprobs": ("20", "requests may ask for 20 at most; leave it out"),
    "--runner": ("generate", "osd generates text; leave it out"),
}
"""Options with the one value that asks for nothing, and what is said of others."""
_SHORT = {"--tensor-parallel-size": "-tp", "--pipeline-parallel-size": "-pp", "--data-parallel-size": "-dp"}
_LEAVE_OUT = "osd has nothing like it; leave it out"
INSTEAD = {
    "--block-size": _LEAVE_OUT,
    "--chat-template-content-format": "osd finds by trial what the chat template takes; leave it out",
    "--cpu-offload-gb": _LEAVE_OUT,
    "--download-dir": "models are loaded by huggingface_hub, whose folder the variable HF_HOME sets",
    "--enable-log-requests": "requests are not logged; leave it out",
    "--enable-lora": _LEAVE_OUT,
    "--enforce-eager": _LEAVE_OUT,
    "--gpu-memory-utilization": "the KV cache has --max-slots rows of --max-context-tokens; give these",
    "--guided-decoding-backend": "grammars are llguidance's; leave it out",
    "--hf-overrides": "change config.json in the target's folder",
    "--kv-cache-memory-bytes": "the KV cache has --max-slots rows of --max-context-tokens; give these",
    "--lora-modules": _LEAVE_OUT,
    "--max-num-batched-tokens": "give --engine.prefill_chunk_tokens, the most prompt tokens of a step",
    "--num-gpu-blocks-override": "the KV cache has --max-slots rows of --max-context-tokens; give these",
    "--override-generation-config": "give --generation-config FOLDER, with a generation_config.json",
    "--quantization": "give --dtype int4 (on a CPU), or a GGUF file as the target",
    "--reasoning-parser": "osd finds in the chat template how reasoning is marked; leave it out",
    "--rope-scaling": "change config.json in the target's folder",
    "--seed": "requests have the field seed; leave it out",
    "--speculative-config": "give --drafter, --drafter-model and --speculation-length",
    "--structured-outputs-config": "grammars are llguidance's; leave it out",
    "--swap-space": _LEAVE_OUT,
    "--tokenizer": "the tokenizer is the target's own, in its folder; leave it out",
    "--uvicorn-log-level": "give --log-level",
}
_UNITS = {"": 1, "k": 10**3, "K": 1 << 10, "m": 10**6, "M": 1 << 20}
_DTYPES = {"half": "float16", "float": "float32"}


def needless_options() -> dict[str, Any]:
    """Name of the parameter to its type, of the options that are taken and change nothing."""
    found: dict[str, Any] = {}
    for flag in SWITCHES:
        found[_parameter(flag)] = Annotated[bool, typer.Option(flag, hidden=True)]
    for flag in ONLY:
        names = [flag, *([_SHORT[flag]] if flag in _SHORT else [])]
        found[_parameter(flag)] = Annotated[str | None, typer.Option(*names, hidden=True)]
    return found


def check(given: dict[str, Any]) -> None:
    """Refuse values that ask for something.

    Args:
        given: the value of every parameter.

    Raises:
        OsdError: an option has another value than the one that is taken.
    """
    for flag, (accepted, instead) in ONLY.items():
        value = given[_parameter(flag)]
        if value not in (None, accepted):
            raise OsdError(f"{flag} {value}: {instead}")


def num_tokens(text: str) -> int | None:
    """A number of tokens as vLLM reads it: '8192', '8k' (8,000), '8K' (8,192); None for 'auto' and '-1'.

    Raises:
        OsdError: it is none of these.
    """
    if text in ("auto", "-1"):
        return None
    number = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", text)
    if number is None:
        raise OsdError(f"--max-model-len takes a number of tokens, such as 8192 or 8k, or auto; got {text!r}")
    return int(float(number[1]) * _UNITS[number[2]])


def dtype(name: str) -> str:
    """The setting's name of a dtype."""
    return _DTYPES.get(name, name)


def _parameter(flag: str) -> str:
    return "vllm_" + flag.strip("-").replace("-", "_")
