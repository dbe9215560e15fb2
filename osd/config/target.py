"""Settings of the target and of the engine that runs it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from osd.config.section import Section


class TargetConfig(Section):
    """The large model whose output is served."""

    model: str = Field("smollm2", description="Target: 'smollm2', a hub id, a local folder or a GGUF file.")
    revision: str = Field("", description="Branch, tag or commit of a hub id; empty: its main branch.")
    trust_remote_code: bool = Field(
        False, description="Run the Python code that models bring along; False refuses models that need it."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32", "int4"] = Field(
        "auto",
        description="Weights' dtype; auto takes the fastest that is no less exact than the stored one. "
        "int4 (CPU) quantises the layers' weights to four bits: another, faster target.",
    )
    device: str = Field("auto", description="'cpu', 'cuda', 'cuda:1'; auto takes a GPU when there is one.")
    threads: int = Field(0, ge=0, description="CPU threads of the engine; 0 takes all physical cores.")
    wait_for_kernels: bool = Field(
        False, description="Serve only once the CPU's kernels are compiled; False serves with torch until then."
    )
    max_context_tokens: int | None = Field(
        None,
        ge=16,
        description="Longest prompt + output of a query, in tokens; default: the model's own, as far as memory allows.",
    )
    chat_template: str = Field("", description="Jinja template of chats: a file, or the text; empty: the model's own.")
    tool_call_format: Literal["auto", "hermes", "llama3_json", "mistral"] = Field(
        "auto", description="How the target writes tool calls; auto finds it in the chat template."
    )
    generation_config: str = Field(
        "auto",
        description="Where sampling defaults come from: auto: the model's generation_config.json; osd (or vllm): none, "
        "those of the API hold; or a folder that holds such a file.",
    )
    special_tokens_in_messages: bool = Field(
        False,
        description="Read '<|im_end|>' and the like in chat messages as special tokens, with which a message can end "
        "its turn and forge others; False reads them as plain text.",
    )


class EngineConfig(Section):
    """Batching."""

    id: str = Field(
        "engine",
        pattern="^[A-Za-z0-9._-]{1,64}$",
        description="Names this engine in outcomes and its spill file; engines that share a state_dir need one each.",
    )
    max_slots: int = Field(16, ge=1, description="Queries decoded at once.")
    max_waiting: int = Field(256, ge=0, description="Queries that may wait for a slot before new ones get 429.")
    prefill_chunk_tokens: int = Field(256, ge=1, description="Most prompt tokens per step, so that no prompt stalls.")
    prefix_caching: bool = Field(
        True, description="Reuse the KV cache of earlier queries, so that only the new part of a prompt is prefilled."
    )
