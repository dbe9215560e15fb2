"""The body of a plain completion: prompts in every shape, and fields that chats lack."""

from typing import Any

import pytest
from pydantic import ValidationError

from serving.wire.completions_request import CompletionRequest
from tests.kit.http_client import COMPLETION


def completion(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({**COMPLETION, **fields})


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_prompts_in_every_shape(prompt: Any, prompts: Any) -> None:
    assert completion(prompt=prompt).prompt == prompts


@pytest.mark.parametrize("prompt", [5, [], ["a", 1], [1, "a"], ["a", [1]], {"a": 1}, [1.5], [True]])
def test_other_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(ValidationError):
        completion(prompt=prompt)


@pytest.mark.parametrize("fields", [{"suffix": "x"}, {"best_of": 2}, {"logprobs": 21}])
def test_unsupported_completion_fields_are_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        completion(**fields)
    assert caught.value.errors()[0]["loc"][-1] == next(iter(fields))


def test_completion_fields_that_ask_for_nothing_are_accepted() -> None:
    assert completion(echo=False, suffix=None, best_of=None) == completion()
    assert completion(best_of=1).n == completion().n == 1
    assert completion(n=3, best_of=3).n == 3
