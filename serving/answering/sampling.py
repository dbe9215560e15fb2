"""From a request's fields to the engine's sampling parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from osd.records.query import SamplingParams
from serving.codec import Codec
from serving.wire.errors import ApiError
from serving.wire.request_base import GenerationFields

_GREEDY = 0.0


def sampling_params(
    body: GenerationFields, codec: Codec, *, max_tokens: int, logprobs: int | None, prompt_logprobs: int | None
) -> SamplingParams:
    """The parameters of a request's first choice; later ones have later seeds.

    Args:
        body: the request; what it leaves out has the model's defaults.
        codec: knows those, and the vocabulary.
        max_tokens: most tokens of one answer.
        logprobs: number of alternatives; None for no log-probabilities.
        prompt_logprobs: as `logprobs`, for the prompt's tokens.

    Raises:
        ApiError: 400, the model has no such token.
    """
    defaults, given = codec.sampling_defaults, body.model_fields_set
    biases = sorted((int(token_id), bias) for token_id, bias in body.logit_bias.items())
    check_ids((token_id for token_id, _ in biases), codec, "logit_bias")
    check_ids(body.allowed_token_ids, codec, "allowed_token_ids")
    check_ids(body.stop_token_ids, codec, "stop_token_ids")
    check_ids(body.logprob_token_ids, codec, "logprob_token_ids")
    bad_words = _bad_words(body.bad_words, codec)
    check_ids(chain.from_iterable(bad_words), codec, "bad_words")
    if body.logprob_token_ids and logprobs is None:
        message = "'logprob_token_ids' is allowed only with 'logprobs'."
        raise ApiError(400, message, param="logprob_token_ids", code="invalid_value")
    if body.min_tokens > max_tokens:
        message = f"'min_tokens' is {body.min_tokens}, but this answer holds {max_tokens} tokens at most."
        raise ApiError(400, message, param="min_tokens", code="invalid_value")
    return SamplingParams(
        temperature=body.temperature if "temperature" in given else defaults.temperature,
        top_p=body.top_p if "top_p" in given else defaults.top_p,
        top_k=max(body.top_k, 0) if "top_k" in given else defaults.top_k,
        min_p=body.min_p if "min_p" in given else defaults.min_p,
        repetition_penalty=body.repetition_penalty if "repetition_penalty" in given else defaults.repetition_penalty,
        seed=body.seed,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=tuple(biases),
        allowed_token_ids=tuple(sorted(set(body.allowed_token_ids))),
        bad_words=bad_words,
        min_tokens=body.min_tokens,
        max_tokens=max_tokens,
        stop=tuple(body.stop),
        stop_token_ids=tuple(body.stop_token_ids),
        include_stop=body.include_stop_str_in_output,
        skip_special_tokens=body.skip_special_tokens,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        logprob_token_ids=tuple(dict.fromkeys(body.logprob_token_ids)),
        repetition_limit=body.repetition_detection.limit() if body.repetition_detection else None,
        ignore_eos=body.ignore_eos,
    )


def check_ids(token_ids: Iterable[int], codec: Codec, param: str) -> None:
    """400 for an id that the model lacks, though its tokenizer may have it."""
    unknown = next((token_id for token_id in token_ids if not 0 <= token_id < codec.vocab_tokens), None)
    if unknown is not None:
        message = f"'{param}' holds the token id {unknown}; {codec.model_id} has 0 to {codec.vocab_tokens - 1}."
        raise ApiError(400, message, param=param, code="invalid_value")


def _bad_words(words: Sequence[str], codec: Codec) -> tuple[tuple[int, ...], ...]:
    """The tokens of each word, at the beginning of a text and after a space."""
    spelt = [text for word in words for text in (word.lstrip(), f" {word.lstrip()}")]
    encoded = (codec.encode_text(text, add_special_tokens=False) for text in spelt)
    return tuple(dict.fromkeys(ids for ids in encoded if ids))
