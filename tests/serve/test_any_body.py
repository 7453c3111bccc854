"""Whatever a body holds, it is a call or it is refused with words: nothing else is ever raised."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np.errors import UserError
from mvlm_np.serve import ollama, openai
from mvlm_np.serve.dialects import Call, Served
from mvlm_np.serve.fields import Fields, read_json
from mvlm_np.serve.refused import refusal
from tests.serve.fake import SERVED, in_base64, picture, said, url

PNG = in_base64(picture())
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=[])),
    st.sampled_from(
        ["user", "assistant", "system", "text", "image_url", "data:;base64,", url(picture()), PNG, "none"]
    ),
    st.sampled_from([0, 1, -1, 2**63, 1e308, 0.5, 1e-7]),
)
NAMES = st.sampled_from(
    "type text image_url url role content images tool_calls model prompt messages options stop seed n stream "
    "temperature top_p top_k num_predict format schema json_schema".split()
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=5)
    ),
    max_leaves=12,
)
WHOLE: dict[str, Any] = {
    "model": "tiny",
    "messages": [said("system", "be kind"), said("user", picture(), "What?")],
    "prompt": "What?",
    "images": [PNG],
    "temperature": 1.0,
    "top_p": 0.9,
    "top_k": 5,
    "seed": 7,
    "n": 2,
    "stop": ["a"],
    "stream": True,
    "stream_options": {"include_usage": True},
    "logprobs": True,
    "top_logprobs": 3,
    "max_tokens": 5,
    "max_completion_tokens": 5,
    "frequency_penalty": 0.1,
    "presence_penalty": 0.1,
    "repeat_penalty": 1.1,
    "tools": [],
    "functions": [],
    "tool_choice": "none",
    "logit_bias": {},
    "modalities": ["text"],
    "response_format": {"type": "text"},
    "mvlm": {"look": True},
    "options": {"num_predict": 5, "stop": "a", "repeat_last_n": 3, "seed": -1},
    "format": {"type": "object"},
    "system": "be kind",
    "keep_alive": 5,
    "think": False,
    "suffix": "",
    "raw": False,
    "template": "",
    "context": [],
}
OF_OLLAMA = WHOLE | {"messages": [{"role": "user", "content": "What?", "images": [PNG]}]}
READERS = {
    "openai": (openai.read, WHOLE),
    "chat": (ollama.read_chat, OF_OLLAMA),
    "generate": (ollama.read_generate, OF_OLLAMA),
}
readers = pytest.mark.parametrize(("read", "whole"), READERS.values(), ids=READERS)
Reader = Callable[[Fields, Served], Call]


def outcome(read: Reader, body: Any) -> None:
    """AssertionError: the body is neither a call nor refused."""
    try:
        call = read(read_json(json.dumps(body).encode()), SERVED)
    except UserError as error:
        refused = refusal(error)
        assert refused.status in (400, 404) and len(str(refused)) < 1000
        json.dumps(openai.error(refused)).encode(), json.dumps(ollama.error(refused)).encode()
        return
    assert 1 <= call.settings.max_new_tokens <= SERVED.max_tokens
    assert len(call.stop) <= 4 and all(call.stop) and 0 <= call.answers <= 4
    assert call.answers == 0 or call.messages[-1].role == "user"
    for message in call.messages:
        message.text.encode()
    for request in call.requests([None] * len(call.pictures), client="me"):
        assert request.settings.seed is None or 0 <= request.settings.seed < 2**63


@readers
def test_the_whole_body_is_a_call(read: Reader, whole: Any) -> None:
    call = read(Fields(whole), SERVED)
    assert call.messages and call.pictures and call.answers


@readers
@given(st.dictionaries(st.sampled_from(list(WHOLE)), VALUES, min_size=1, max_size=3))
def test_fields_of_any_kind(read: Reader, whole: Any, changed: dict[str, Any]) -> None:
    outcome(read, whole | changed)


@readers
@given(
    st.lists(
        st.fixed_dictionaries({"role": LEAVES, "content": VALUES}, optional={"images": VALUES}), max_size=4
    )
)
def test_messages_of_any_kind(read: Reader, whole: Any, messages: list[Any]) -> None:
    outcome(read, whole | {"messages": messages})


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes(body: bytes) -> None:
    for read, _ in READERS.values():
        try:
            read(read_json(body), SERVED)
        except UserError as error:
            assert refusal(error).status in (400, 404)
