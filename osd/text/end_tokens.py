"""The ids of the tokens that end an answer (EOS), collected from a model folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


def end_token_ids(folder: Path, tokenizer: Any) -> frozenset[int]:
    """The union of the EOS tokens named by `generation_config.json`, `config.json` and the tokenizer.

    A file that cannot be read, and an id outside the vocabulary, are skipped with a warning.

    Args:
        folder: the model's folder.
        tokenizer: the model's transformers tokenizer.
    """
    config = _read(folder / "config.json")
    text_config = config.get("text_config") or {}
    named = {
        "generation_config.json": _ids(_read(folder / "generation_config.json")),
        "config.json": _ids(config) + _ids(text_config),
        "the tokenizer": _ids({"eos_token_id": tokenizer.eos_token_id}),
    }
    vocab_tokens = max(len(tokenizer), config.get("vocab_size") or 0, text_config.get("vocab_size") or 0)
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
        _log.warning("%s cannot be read (%s): any end tokens that it names are not used", path, error)
        return {}
    return content if isinstance(content, dict) else {}


def _ids(config: Any) -> list[int]:
    """The `eos_token_id` of a configuration as a list; the field may be absent, one id, or a list."""
    eos = config.get("eos_token_id") if isinstance(config, dict) else None
    return [number for number in (eos if isinstance(eos, list) else [eos]) if isinstance(number, int)]
