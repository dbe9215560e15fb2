"""llama.cpp's own tokenizer, through llama-cpp-python, in a process of its own: it prints, and leaves files open.

python -m tests.kit.llama_cpp_tokens          writes the ids that tests compare with where it is not installed
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from osd.loading.gguf.pre_tokenizers import PRE_TOKENIZERS
from tests.kit.gguf_files import pair_vocabulary, sentencepiece_vocabulary, write_gguf
from tests.kit.gguf_texts import strange_texts

SAVED = Path(__file__).parent / "gguf_tokens.json"
SENTENCEPIECE = {
    "": {},
    "no space, no BOS": {"add_space_prefix": False, "add_bos_token": False},
    "EOS": {"add_eos_token": True},
}
SENTENCEPIECE_TEXTS = (
    "the world",
    " the  world",
    "  ",
    "a",
    "",
    "and\n\nthe",
    "<think>the</s> and",
    "<|user|> hi the",
    "thing \u65e5",
    "\u2581the",
)


def rules() -> list[str]:
    """One name of each rule."""
    return list({rule: name for name, rule in reversed(list(PRE_TOKENIZERS.items()))}.values())


def ids_of(metadata: Mapping[str, Any], texts: Sequence[str]) -> tuple[list[list[list[int]]], list[int]]:
    """Each text's ids as a prompt with special tokens, and as plain text; and the tokens that end an answer."""
    command = [sys.executable, "-m", "tests.kit.llama_cpp_tokens", "ids"]
    request = json.dumps({"metadata": dict(metadata), "texts": list(texts)})
    done = subprocess.run(command, input=request, capture_output=True, check=True, text=True)
    ids, ends = json.loads(done.stdout)
    return ids, ends


def _ids_here(metadata: Mapping[str, Any], texts: Sequence[str]) -> tuple[list[list[list[int]]], list[int]]:
    import llama_cpp

    llama_cpp.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        path = write_gguf(Path(folder) / "vocabulary.gguf", metadata)
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        vocab = llama_cpp.llama_model_get_vocab(model)

    def encode(text: str, special: bool) -> list[int]:
        raw = text.encode()
        buffer = (llama_cpp.llama_token * (len(raw) + 16))()
        count = llama_cpp.llama_tokenize(vocab, raw, len(raw), buffer, len(buffer), special, special)
        return list(buffer[:count])

    ids = [[encode(text, True), encode(text, False)] for text in texts]
    num_tokens = llama_cpp.llama_vocab_n_tokens(vocab)
    ends = [number for number in range(num_tokens) if llama_cpp.llama_vocab_is_eog(vocab, number)]
    llama_cpp.llama_model_free(model)
    return ids, ends


def main() -> None:
    """Answer a request, or write the file."""
    if sys.argv[1:] == ["ids"]:
        request = json.load(sys.stdin)
        sys.stdout.write(json.dumps(_ids_here(request["metadata"], request["texts"])))
        return
    texts = strange_texts(24)
    byte_pairs = {name: ids_of(pair_vocabulary(texts, name), texts)[0] for name in rules()}
    sentencepiece = {}
    for name, options in SENTENCEPIECE.items():
        metadata = {"general.architecture": "llama", **sentencepiece_vocabulary(**options)}
        sentencepiece[name] = ids_of(metadata, SENTENCEPIECE_TEXTS)[0]
    saved = {"texts": texts, "byte_pairs": byte_pairs, "sentencepiece": sentencepiece}
    SAVED.write_text(json.dumps(saved, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
