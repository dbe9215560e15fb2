"""Which tokens end an answer, from all the files of a model folder that may say so."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


def end_token_ids(folder: Path, tokenizer: Any) -> frozenset[int]:
    """The union of what `generation_config.json`, `config.json` and the tokenizer name as their EOS tokens.

    A file that cannot be read and an id outside the vocabulary are passed over with a warning.

    Args:
        folder: a model's.
        tokenizer: the same model's, of transformers.
    """
    config = _read(folder / "config.json")
    inner = config.get("text_config") or {}
    named = {
        "generation_config.json": _ids(_read(folder / "generation_config.json")),
        "config.json": _ids(config) + _ids(inner),
        "the tokenizer": _ids({"eos_token_id": tokenizer.eos_token_id}),
    }
    vocab_tokens = max(len(tokenizer), config.get("vocab_size") or 0, inner.get("vocab_size") or 0)
    ends = set()
    for source, ids in named.items():
        for number in ids:
            if 0 <= number < vocab_tokens:
                ends.add(number)
            else:
                _log.warning(
                    "%s of %s: eos_token_id %s is outside the vocabulary of %s tokens, so it ends no answer",
                    source,
                    folder,
                    number,
                    vocab_tokens,
                )
    return frozenset(ends)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _log.warning("%s cannot be read (%s): what it says of end tokens is not known", path, error)
        return {}
    return content if isinstance(content, dict) else {}


def _ids(config: Any) -> list[int]:
    """The `eos_token_id` of a configuration: none, one, or a list."""
    eos = config.get("eos_token_id") if isinstance(config, dict) else None
    return [number for number in (eos if isinstance(eos, list) else [eos]) if isinstance(number, int)]
