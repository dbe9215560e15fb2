"""llama.cpp as a contender, through llama-cpp-python."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.contenders import TEMPERATURE, TOP_P, Job, MissingPeerError, Run, Setting


class LlamaCpp:
    """llama.cpp with its default of repacking weights for the processor, unless that crashes.

    Args:
        setting: the comparison's settings.
        unquantised: use the GGUF file's weights in bfloat16, as osd does; else the file as shipped.
    """

    def __init__(self, setting: Setting, *, unquantised: bool = False) -> None:
        if find_spec("llama_cpp") is None:
            raise MissingPeerError("pip install llama-cpp-python (it builds llama.cpp: minutes)")
        if not setting.gguf:
            raise MissingPeerError("the target is no GGUF file; give one with --gguf")
        self._eos_ids = set(setting.eos_ids)
        path = str(_in_bfloat16(setting)) if unquantised else setting.gguf
        self._model = _loaded(path, setting.threads, repack=not _repacked_crashes(path, setting.threads))

    def run(self, job: Job) -> Run:
        """Decode."""
        if len(job.prompts) > 1:
            raise MissingPeerError("llama-cpp-python decodes one query at a time")
        options = {"temp": TEMPERATURE, "top_p": TOP_P} if job.sampled else {"temp": 0.0}
        self._model.reset()
        decoded, started_s = 0, 0.0
        for number, token in enumerate(self._model.generate(job.prompts[0], top_k=0, repeat_penalty=1.0, **options)):
            if number == 0:
                started_s = time.perf_counter()
            else:
                decoded += 1
            if token in self._eos_ids or number + 1 >= job.max_tokens:
                break
        return Run(
            decoded_tokens=decoded,
            decode_s=time.perf_counter() - started_s,
            rounds=decoded,
            committed=decoded,
            row_rounds=decoded,
        )


def _loaded(path: str, threads: int, *, repack: bool) -> Any:
    import llama_cpp

    defaults = llama_cpp.llama_model_default_params

    def parameters() -> Any:  # llama-cpp-python has no argument for repacking
        chosen = defaults()
        chosen.use_extra_bufts = repack
        return chosen

    llama_cpp.llama_cpp.llama_model_default_params = llama_cpp.llama_model_default_params = parameters
    try:
        return llama_cpp.Llama(model_path=path, n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)
    finally:
        llama_cpp.llama_cpp.llama_model_default_params = llama_cpp.llama_model_default_params = defaults


def _repacked_crashes(path: str, threads: int) -> bool:
    """Try it in another process: llama-cpp-python 0.3.36 crashes at the first prompt with Q4_1 and AMX."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            pool.submit(_first_token, path, threads).result()
        except BrokenProcessPool:
            return True
    return False


def _first_token(path: str, threads: int) -> None:
    next(iter(_loaded(path, threads, repack=True).generate([1] * 32, temp=0.0)))


def _in_bfloat16(setting: Setting) -> Path:
    """The GGUF file with its weights in bfloat16; made once."""
    import llama_cpp

    path = Path(setting.state_dir) / "models" / f"{Path(setting.gguf).stem}.bf16.gguf"
    if not path.exists():
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_BF16, True
        scratch = path.with_suffix(".tmp")
        if llama_cpp.llama_model_quantize(setting.gguf.encode(), str(scratch).encode(), params):
            raise MissingPeerError(f"llama.cpp cannot write {setting.gguf} as bfloat16")
        scratch.replace(path)
    return path
