"""Who answers: the model in the box, as `mvlm ask` has it; or servers, with all that they may say."""

import base64
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from math import exp, log
from typing import Any

import numpy as np
import pytest

import mvlm_np
from mvlm_np.answer import Answer
from mvlm_np.demo import MODEL, PICTURES
from mvlm_np.errors import ImageError, PromptError, UserError
from mvlm_np.generation import Settings, probabilities
from mvlm_np.watch import asking
from mvlm_np.watch.asking import Local, NotNow, Reply, Server, probability
from tests.conftest import ROOT
from tests.watch.camera import jpeg, scene

pytestmark = pytest.mark.xdist_group("demo")
ROOM = jpeg(scene())


@pytest.fixture(scope="module")
def model() -> mvlm_np.MobileVLM:
    return mvlm_np.load(MODEL, backend="numpy")


QUESTIONS = json.loads((PICTURES / "questions.json").read_text())


@pytest.mark.parametrize("entry", QUESTIONS[:2], ids=lambda entry: entry["picture"])
def test_answers_are_those_of_ask(model: mvlm_np.MobileVLM, entry: dict[str, Any]) -> None:
    path = PICTURES / entry["picture"]
    for question in [*entry["questions"]][1:3]:
        reply = Local(model, question, Settings(64)).ask(path.read_bytes())
        chat = model.chat(path)
        assert reply.text == chat.ask(question, max_new_tokens=64)
        assert reply.tokens == len(chat.answer_ids)
        assert reply.p is not None and 0 < reply.p <= 1


def test_p_is_what_the_models_logits_say(model: mvlm_np.MobileVLM) -> None:
    path, question = PICTURES / "0.png", "Describe the yellow lamp."
    stages = model.trace(path, question)
    ids = stages["generated_ids"].ravel()
    answer = Answer(model.tokenizer, "</s>")
    for token in ids:
        answer.push(int(token))
    rows = np.concatenate([stages["logits"].reshape(-1, stages["logits"].shape[-1])[-1:],
                           stages["decode.logits"].reshape(-1, stages["logits"].shape[-1])])  # fmt: skip
    known = model.tokenizer.vocab_size
    chances = [probabilities(row[:known])[token] for row, token in zip(rows, ids, strict=False)]
    reply = Local(model, question, Settings(24)).ask(path.read_bytes())
    assert reply.text == answer.text and ids[-1] == 2  # the end, which is no part of the text
    assert reply.p == pytest.approx(float(np.prod(chances[: len(ids) - 1])), rel=1e-3)


def test_a_picture_that_comes_again_is_encoded_once(
    model: mvlm_np.MobileVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    original = model.encode_image

    def counted(*args: Any) -> np.ndarray:
        encoded.append(args)
        return original(*args)

    monkeypatch.setattr(model, "encode_image", counted)
    local = Local(model, "Describe the picture.", Settings(4))
    one, other = ((PICTURES / name).read_bytes() for name in ("0.png", "1.png"))
    replies = [local.ask(data) for data in (one, one, other, one)]
    assert len(encoded) == 3 and replies[0] == replies[1] == replies[3]


def test_pictures_and_questions_that_are_none(model: mvlm_np.MobileVLM) -> None:
    with pytest.raises(ImageError, match="the picture: is no picture"):
        Local(model, "What is it?", Settings(4)).ask(b"nothing")
    with pytest.raises(PromptError):
        Local(model, "What is it?", Settings(4), conv_mode="none")
    with pytest.raises(PromptError, match="shorten the question"):
        Local(model, "word " * 9000, Settings(4)).ask((PICTURES / "0.png").read_bytes())


@pytest.mark.parametrize(
    ("text", "chances", "p"),
    [
        ("two words", [(" two", 0.5), (" words", 0.5), ("", 0.1)], 0.25),
        ("yes", [("yes", 0.9), ("</s>", 0.5)], 0.9),
        ("No, none.", [(" N", 0.8), ("o", 0.5), (",", 0.1), (" none.", 0.1)], 0.4),
        ("Yesterday", [("Yes", 0.9), ("terday", 0.5)], 0.45),
        ("", [("", 0.5)], 1.0),
        ("any", [], None),
    ],
)
def test_the_probability_of_an_answer(text: str, chances: list[tuple[str, float]], p: float | None) -> None:
    found = probability(text, [(piece, log(chance)) for piece, chance in chances])
    assert found == (p if p is None else pytest.approx(p))


# ---------------------------------------------------------------- servers


class Handler(BaseHTTPRequestHandler):
    """Replies with what the test says; keeps what it was asked."""

    status: int = 200
    reply: bytes = b""
    asked: list[tuple[str, dict[str, Any], str | None]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, body, self.headers.get("Authorization")))
        assert self.headers["X-Priority"] == "low"  # a server answers people first
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.reply)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server's address; what it says stands in `Handler`."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("MVLM_API_KEY", raising=False)
    monkeypatch.setattr(Handler, "asked", [], raising=False)
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def says(monkeypatch: pytest.MonkeyPatch, reply: object, status: int = 200) -> None:
    monkeypatch.setattr(Handler, "status", status)
    monkeypatch.setattr(Handler, "reply", reply if isinstance(reply, bytes) else json.dumps(reply).encode())


def completion(content: object, logprobs: object = None) -> dict[str, Any]:
    choice = {"message": {"role": "assistant", "content": content}, "logprobs": logprobs}
    return {"choices": [choice], "usage": {"completion_tokens": 2}}


def test_what_a_server_is_asked(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [{"token": " No", "logprob": log(0.8)}, {"token": "</s>", "logprob": log(0.5)}]
    says(monkeypatch, completion(" No\n", {"content": tokens}))
    reply = Server(address, "Is it on?", 9).ask(ROOM)
    assert (reply.text, reply.tokens) == ("No", 2) and reply.p == pytest.approx(0.8)
    monkeypatch.setenv("MVLM_API_KEY", "secret")
    Server(f"{address}/v1/", "Is it on?", 9).ask(ROOM)
    (path, body, key), again = Handler.asked
    assert again == ("/v1/chat/completions", body, "Bearer secret") and (path, key) == (again[0], None)
    picture, question = body["messages"][0]["content"]
    head, _, data = picture["image_url"]["url"].partition(",")
    assert (head, base64.b64decode(data)) == ("data:image/jpeg;base64", ROOM)
    assert question == {"type": "text", "text": "Is it on?"}
    assert (body["max_tokens"], body["temperature"], body["logprobs"]) == (9, 0, True)


def test_a_very_large_picture_is_sent_smaller(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "SENT", 100)
    says(monkeypatch, completion("A room"))
    assert Server(address, "What?", 9).ask(ROOM) == Reply("A room", 2, None)
    sent = Handler.asked[0][1]["messages"][0]["content"][0]["image_url"]["url"]
    assert base64.b64decode(sent.partition(",")[2]).startswith(b"\xff\xd8")


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_server_that_is_busy_is_for_later(
    address: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, {"error": {"message": "busy"}}, status)
    with pytest.raises(NotNow, match=rf"^answers {status} \(busy\)$"):
        Server(address, "What?", 9).ask(ROOM)


def test_a_server_that_is_away_is_for_later() -> None:
    with pytest.raises(NotNow, match=r"does not answer .*refused"):
        Server("http://127.0.0.1:9", "What?", 9).ask(ROOM)


@pytest.mark.parametrize(
    ("status", "reply", "message"),
    [
        (401, {"error": {"message": "no key"}}, "answers 401: no key; set MVLM_API_KEY to the server's key"),
        (403, b"", "answers 403: without a reason; set MVLM_API_KEY"),
        (400, {"error": {"message": "too long"}}, "answers 400: too long$"),
        (404, b"<html>", "answers 404: without a reason$"),
        (200, b"<html>", "answered with something else, wanted a reply in OpenAI's dialect; check --server"),
        (200, {"choices": []}, "answered with something else"),
        (200, [], "answered with something else"),
        (200, {"choices": [{"message": None}]}, "answered with something else"),
    ],
)
def test_what_waiting_does_not_mend(
    address: str, status: int, reply: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, reply, status)
    with pytest.raises(UserError, match=f"^{address}: {message}"):
        Server(address, "What?", 9).ask(ROOM)


def test_an_address_that_is_none() -> None:
    with pytest.raises(UserError, match="--server: found 'localhost:8080', wanted its address: http://"):
        Server("localhost:8080", "What?", 9)


def test_a_real_server_answers_as_the_model_does(
    model: mvlm_np.MobileVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mvlm serve`, in a process of its own, with a key."""
    for package in ("starlette", "uvicorn"):
        pytest.importorskip(package)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("MVLM_API_KEY", "secret")
    monkeypatch.delenv("MVLM_MODEL", raising=False)
    call = [sys.executable, "-m", "mvlm_np", "serve", "--port", "0", "--backend", "numpy"]
    data = (PICTURES / "0.png").read_bytes()
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        try:
            said = next(line for line in process.stderr if "answers at" in line)
            found = re.search(r"http://[0-9.:]+", said)
            assert found is not None
            for question in ("Is the yellow lamp on?", "Describe the yellow lamp."):
                reply, own = (asker.ask(data) for asker in (
                    Server(found[0], question, 24), Local(model, question, Settings(24))
                ))  # fmt: skip
                assert (reply.text, reply.tokens) == (own.text, own.tokens)
                assert reply.p == pytest.approx(own.p, rel=1e-3)
            monkeypatch.setenv("MVLM_API_KEY", "wrong")
            with pytest.raises(UserError, match=r"answers 401: .*set MVLM_API_KEY to the server's key"):
                Server(found[0], "What?", 9).ask(data)
        finally:
            process.terminate()


def test_logarithms_are_never_above_one() -> None:
    assert probability("a", [("a", 1e-9)]) == exp(0.0)
