"""Many requests, some wrong and some left by their client: memory, threads and files stay as they are.

60 requests; `make soak` makes 2,000 of them.
"""

import http.client
import json
import os
import random
import threading
from typing import Any
from urllib.parse import urlsplit

from tests.clients.served import Server, serving
from tests.serve.fake import picture, said

REQUESTS = int(os.environ.get("MVLM_SOAK", "60"))
CLIENTS = 4
COLOURS = ("red", "green", "blue", "yellow", "white", "black")
WRONG: list[Any] = [
    {"messages": []},
    {"messages": [said("user", b"no picture", "What?")]},
    [],
    {"temperature": 9},
]


def taken(server: Server) -> tuple[int, int, int]:
    """Resident kilobytes, threads and open files of the server."""
    folder = f"/proc/{server.process.pid}"
    with open(f"{folder}/status") as file:
        status = dict(line.split(":", 1) for line in file)
    return int(status["VmRSS"].split()[0]), int(status["Threads"]), len(os.listdir(f"{folder}/fd"))


def ask(server: Server, chance: random.Random) -> None:
    """One request, with an end of some kind."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=120)
    try:
        size = chance.randrange(20, 400), chance.randrange(20, 400)
        photo = picture(size, chance.choice(["PNG", "JPEG", "WEBP"]), chance.choice(COLOURS))
        body: Any = {
            "messages": [said("user", photo, "What?")],
            "max_tokens": chance.randrange(1, 9),
            "stream": True,
        }
        kind = chance.choice(["whole", "stream", "stream", "leave early", "leave late", "wrong"])
        if kind == "wrong":
            body = chance.choice(WRONG)
        elif kind == "whole":
            body["stream"] = False
        elif kind == "leave late":
            body |= {"max_tokens": 500, "temperature": 2, "top_k": 0}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"host": "localhost"})
        if kind == "leave early":
            return
        reply = connection.getresponse()
        assert reply.status == (400 if kind == "wrong" else 200), (kind, reply.status, reply.read())
        if kind == "leave late":
            reply.readline()
            return
        text = reply.read()
        assert kind != "stream" or text.endswith(b"data: [DONE]\n\n"), text
    finally:
        connection.close()


def ask_many(server: Server, requests: int, seed: int, errors: list[BaseException]) -> None:
    def work(number: int) -> None:
        chance = random.Random(seed * CLIENTS + number)
        try:
            for _ in range(requests // CLIENTS):
                ask(server, chance)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_many_requests_leave_nothing_behind() -> None:
    with serving("--cache-memory", "16") as server:
        errors: list[BaseException] = []
        ask_many(server, max(CLIENTS, REQUESTS // 4), 0, errors)  # by then caches and pools are full
        before = taken(server)
        ask_many(server, REQUESTS, 1, errors)
        after = taken(server)
        print("kilobytes, threads, files:", before, after)
        assert errors == []
        assert after[0] - before[0] < 20_000, (before, after)  # what threads keep; 10 kB a request at most
        assert after[1] <= before[1] + 2 and after[2] <= before[2] + CLIENTS + 2, (before, after)
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
        connection.request("GET", "/health")
        assert json.load(connection.getresponse())["status"] == "ok"
    assert "Traceback" not in "".join(server.log)
