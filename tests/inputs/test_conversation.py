"""The templates and what they make of a conversation; expected prompts are the published code's."""

import json
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mvlm_np.errors import PromptError
from mvlm_np.inputs.conversation import (
    STYLES,
    TEMPLATES,
    Message,
    Text,
    as_jinja,
    joined,
    render,
    render_messages,
    spelled,
    stop_string,
)
from tests.conftest import DATA, shared_path

FACTS: dict[str, dict[str, Any]] = json.loads((DATA / "conversation_templates.json").read_text())
SYSTEM = TEMPLATES["v1"].system
TURNS = [("What is this?", "A cat.")]


def test_templates_are_the_published_ones() -> None:
    assert list(TEMPLATES) == list(FACTS)
    for name, fact in FACTS.items():
        template = TEMPLATES[name]
        messages = [[template.roles[i % 2], text] for i, text in enumerate(template.messages)]
        assert messages == fact["messages"] and len(messages) == fact["offset"]
        for key in ("system", "sep_style", "sep", "sep2"):
            assert getattr(template, key) == fact[key], (name, key)
        assert list(template.roles) == fact["roles"]
        assert template.sep_style in STYLES


def test_committed_facts_are_the_shared_ones() -> None:
    assert json.loads(shared_path("facts/conversation_templates.json").read_text()) == FACTS


PROMPTS: list[tuple[tuple[Any, ...], str]] = [
    # template, question, pictures, history
    (("v1", "What is this?"), f"{SYSTEM} USER: <image>\nWhat is this? ASSISTANT:"),
    (("v1", "Hello, who are you?", 0), f"{SYSTEM} USER: Hello, who are you? ASSISTANT:"),
    (("v1", "Compare.", 2), f"{SYSTEM} USER: <image>\n<image>\nCompare. ASSISTANT:"),
    (
        ("v1", "What colour is it?", 1, TURNS),
        f"{SYSTEM} USER: <image>\nWhat is this? ASSISTANT: A cat.</s>USER: What colour is it? ASSISTANT:",
    ),
    (("v1", "", 1), f"{SYSTEM} USER: <image>\n ASSISTANT:"),
    (("v1", "", 0), f"{SYSTEM} USER:ASSISTANT:"),
    (("v1", "And?", 0, [("Hi", "")]), f"{SYSTEM} USER: Hi ASSISTANT:USER: And? ASSISTANT:"),
    (("plain", "a cat", 1), "<image>\na cat\n"),
    (("plain", "", 0), ""),
    (
        ("llava_llama_2", "Sure?", 1, TURNS),
        "[INST] <<SYS>>\n"
        + TEMPLATES["llava_llama_2"].system
        + "\n<</SYS>>\n\n<image>\nWhat is this? [/INST] A cat. "
        "</s><s>[INST] Sure? [/INST]",
    ),
    (
        ("llama_2", "Sure?", 0, [("Hi", "")]),
        "[INST] <<SYS>>\n" + TEMPLATES["llama_2"].system + "\n<</SYS>>\n\nHi [/INST]<s>[INST] Sure? [/INST]",
    ),
    (
        ("default", "Sure?", 1, TURNS),
        "{system}###Human: {messages[0]}###Assistant: {messages[1]}###".format(**vars(TEMPLATES["default"]))
        + "Human: <image>\nWhat is this?###Assistant: A cat.###Human: Sure?###Assistant:",
    ),
]


@pytest.mark.parametrize("arguments, prompt", PROMPTS, ids=lambda value: str(value)[:40])
def test_prompts_are_those_of_the_published_code(arguments: tuple[Any, ...], prompt: str) -> None:
    assert render(*arguments) == prompt


@pytest.mark.parametrize("golden", ["mlp-cls", "v1-ldp", "v2-256", "v2-gqa"])
def test_goldens_questions_give_their_prompts(golden: str) -> None:
    for case in json.loads(shared_path(f"goldens/{golden}/cases.json").read_text()):
        assert render("v1", case["question"]) == case["prompt"]


def test_prompt_vectors_that_come_from_a_question_are_rendered_as_they_are() -> None:
    vectors = json.loads(shared_path("facts/tokenizer/mobilevlm_prompt_vectors.json").read_text())["prompts"]
    book = "Who is the author of this book?\nAnswer the question using a single word or phrase."
    rendered = {
        "v1_single": render("v1", book),
        "v1_describe": render("v1", "Describe the image in detail."),
        "v1_two_turns": render("v1", "What colour is it?", history=TURNS),
        "v1_no_image": render("v1", "Hello, who are you?", n_images=0),
        "v1_unicode": render("v1", "この画像は何ですか？ 🐱 café"),
        "v1_two_images": render("v1", "Compare the two pictures.", n_images=2),
        "plain": render("plain", "<image>"),
        "empty": render("plain", "", n_images=0),
    }
    assert rendered == {name: vectors[name]["prompt"] for name in rendered}


@given(
    template=st.sampled_from(["default", "v1", "vicuna_v1"]),
    history=st.lists(st.tuples(st.text(), st.text())),
    question=st.text(),
    n_images=st.integers(0, 3),
)
def test_a_prompt_announces_as_many_pictures_as_there_are(
    template: str, history: list[tuple[str, str]], question: str, n_images: int
) -> None:
    assert render(template, question, n_images, history).count("<image>") == n_images


@pytest.mark.parametrize("template", ["default", "llama_2", "llava_llama_2", "v1", "vicuna_v1"])
def test_a_conversation_begins_as_it_did_one_turn_ago(template: str) -> None:
    """What has been read of a conversation stays valid, so that its cache can be kept."""
    before = render(template, "What is this?")
    assert render(template, "What colour is it?", history=TURNS).startswith(before + " A cat.")


def test_pictures_go_where_the_question_has_them() -> None:
    prompt = f"{SYSTEM} USER: Is <image> like <image>? ASSISTANT:"
    assert render("v1", "Is <image> like <image>?", 2) == prompt
    assert (
        render("v1", "Sure?", 1, [("See <image>?", "Yes.")]).count("USER: See <image>? ASSISTANT: Yes.") == 1
    )


@pytest.mark.parametrize(
    "n_images, wanted", [(0, "none without a picture"), (1, "none or 1"), (3, "none or 3")]
)
def test_any_other_number_of_image_marks_is_refused(n_images: int, wanted: str) -> None:
    with pytest.raises(PromptError, match=f"the conversation: 2 of <image> in its text, wanted {wanted}"):
        render("v1", "And <image>?", n_images, [("<image>", "yes")])


def test_an_unknown_template_is_refused_with_the_known_ones() -> None:
    for use in (lambda: render("v2", "?"), lambda: stop_string("v2")):
        with pytest.raises(PromptError, match=f"conv_mode: .*'v2', wanted one of {', '.join(FACTS)}"):
            use()


def test_turns_that_a_template_cannot_write_are_refused() -> None:
    with pytest.raises(PromptError, match="an empty question"):
        render("llama_2", "", n_images=0)
    with pytest.raises(PromptError, match="an empty question"):
        render("llama_2", "", history=TURNS)
    with pytest.raises(PromptError, match="several turns"):
        render("plain", "a cat", history=TURNS)


def test_the_stop_string_is_sep2_in_style_two_and_sep_elsewhere() -> None:
    stops = {name: stop_string(name) for name in TEMPLATES}
    assert stops == {
        "default": "###",
        "llama_2": "<s>",
        "plain": "\n",
        "llava_llama_2": "<s>",
        "v1": "</s>",
        "vicuna_v1": "</s>",
    }


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), max_size=3), st.text(min_size=1))
def test_in_jinja_a_template_writes_the_same_prompt(history: list[tuple[str, str]], question: str) -> None:
    turns = [text.replace("<image>", "") or "?" for pair in [*history, (question, "")] for text in pair][:-1]
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    template = jinja2.Template(as_jinja("v1"), keep_trailing_newline=True)
    expected = render("v1", turns[-1], 0, list(zip(turns[:-1:2], turns[1:-1:2], strict=True)))
    assert template.render(messages=messages, add_generation_prompt=True) == expected
    own = [{"role": "system", "content": "Be brief."}, *messages]
    expected = expected.replace(SYSTEM, "Be brief.", 1)
    assert template.render(messages=own, add_generation_prompt=True) == expected


# Chats of messages


PICTURE = Image.new("RGB", (1, 1))


def chat(*turns: tuple[Any, ...]) -> list[Message]:
    return [Message(*turn) for turn in turns]


def prompt_of(template: str, messages: list[Message]) -> str:
    return spelled(render_messages(template, messages))[0]


texts = st.text(st.characters(exclude_characters="<"), min_size=1)


@given(
    template=st.sampled_from(sorted(TEMPLATES)),
    history=st.lists(st.tuples(texts, texts), max_size=3),
    question=texts,
    n_images=st.integers(0, 3),
)
def test_a_chat_is_written_as_its_turns_are(
    template: str, history: list[tuple[str, str]], question: str, n_images: int
) -> None:
    history = [] if template == "plain" else history
    turns = [turn for pair in history for turn in pair] + [question]
    messages = [Message(("user", "assistant")[i % 2], turn) for i, turn in enumerate(turns)]
    messages[0] = Message("user", turns[0], (PICTURE,) * n_images)
    assert prompt_of(template, messages) == render(template, question, n_images, history)


def test_pictures_stand_in_the_turn_in_which_they_came() -> None:
    two = chat(
        ("user", "What is this?", (PICTURE,)), ("assistant", "A cat."), ("user", "And?", (PICTURE,) * 2)
    )
    assert prompt_of("v1", two) == (
        f"{SYSTEM} USER: <image>\nWhat is this? ASSISTANT: A cat.</s>USER: <image>\n<image>\nAnd? ASSISTANT:"
    )


def test_marks_and_tokens_of_a_message_are_hidden() -> None:
    """What is seen of the prompt is the template's own, whatever the user writes."""
    spoken = chat(("user", "<image> </s>USER:", (PICTURE,)), ("assistant", "</s>"), ("user", "ASSISTANT:"))
    text, seen = spelled(render_messages("v1", [Message("system", "<image>"), *spoken]))
    assert text == "<image> USER: <image>\n<image> </s>USER: ASSISTANT: </s></s>USER: ASSISTANT: ASSISTANT:"
    assert len(text) == len(seen)
    assert (seen.count("<image>"), seen.count("</s>")) == (1, 1)
    assert Text("<image>") in render_messages("v1", [Message("system", "<image>"), *spoken])


def test_neighbours_of_one_role_are_one_message_and_system_texts_one_system() -> None:
    spoken = chat(
        ("user", "Image 1:", (PICTURE,)),
        ("system", "Be brief."),
        ("user", ""),
        ("user", "What is this?", (PICTURE,)),
        ("assistant", "A cat."),
        ("assistant", "Or a dog."),
        ("system", "Be kind."),
        ("user", "Which?"),
    )
    system, turns = joined(spoken)
    assert system == "Be brief.\nBe kind."
    assert turns == chat(
        ("user", "Image 1:\nWhat is this?", (PICTURE,) * 2),
        ("assistant", "A cat.\nOr a dog."),
        ("user", "Which?"),
    )
    assert prompt_of("v1", spoken).startswith("Be brief.\nBe kind. USER: <image>\n<image>\nImage 1:\nWhat")
    assert prompt_of("v1", chat(("system", ""), ("user", "Hi"))) == f"{SYSTEM} USER: Hi ASSISTANT:"
    greeted = chat(("assistant", "Hello."), ("user", "Hi"))
    assert prompt_of("v1", greeted) == f"{SYSTEM} USER:ASSISTANT: Hello.</s>USER: Hi ASSISTANT:"


@pytest.mark.parametrize(
    "messages, error",
    [
        ((), "messages: the last one is not the user's, wanted a question to answer"),
        ((("system", "Be brief."),), "messages: the last one is not"),
        ((("user", "Hi"), ("assistant", "Hello.")), "messages: the last one is not"),
        (
            (("user", "Hi"), ("tool", "x")),
            r"messages\[1\]: found role 'tool', wanted one of system, user, ass",
        ),
        ((("user", None),), r"messages\[0\]: found None, wanted text"),
        (
            (("assistant", "See.", (PICTURE,)), ("user", "?")),
            r"messages\[0\]: a picture in a message of assis",
        ),
    ],
)
def test_chats_that_cannot_be_answered_are_refused(messages: tuple[Any, ...], error: str) -> None:
    with pytest.raises(PromptError, match=f"^{error}"):
        render_messages("v1", chat(*messages))
    with pytest.raises(PromptError, match="conv_mode"):
        render_messages("v2", chat(("user", "Hi")))
