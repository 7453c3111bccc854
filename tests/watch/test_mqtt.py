"""MQTT: addresses, what Home Assistant is told, and a real broker that comes, goes and refuses."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mvlm_np.errors import UserError
from mvlm_np.watch.clock import Clock
from mvlm_np.watch.mqtt import Mqtt, broker, discovery, identity
from mvlm_np.watch.notes import Notes
from mvlm_np.watch.outputs import Event
from tests.conftest import ROOT
from tests.watch.camera import jpeg, scene

ROOM = jpeg(scene())
EVENT = Event("2026-11-01T12:00:00+00:00", "camera", True, "A cat", 0.9, 3, 1.5, None, "A cat")
SOON = 20.0


@pytest.mark.parametrize(
    ("address", "host", "port", "user", "password", "topic"),
    [
        ("mqtt://broker", "broker", 1883, None, None, "mvlm"),
        ("mqtts://me:p%40ss@ha.local/home/cams/", "ha.local", 8883, "me", "p@ss", "home/cams"),
        ("mqtt://me@[::1]:99", "::1", 99, "me", None, "mvlm"),
    ],
)
def test_addresses(
    address: str, host: str, port: int, user: str | None, password: str | None, topic: str
) -> None:
    shown, *rest = broker(address)
    assert rest == [host, port, user, password, topic] and "p%40ss" not in shown


@pytest.mark.parametrize(
    "address",
    ["broker", "http://broker", "mqtt://", "mqtt://b:port", "mqtt://b/a/+", "mqtt://b/a/#x", "mqtt://b/?x=1"],
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(UserError, match=r"^--mqtt: found .*wanted"):
        broker(address)


def test_an_id_stays_the_same_and_is_fit_for_a_topic() -> None:
    assert identity("Front door!", "x", "y") == "mvlm_front_door"
    assert identity(None, "a", "b") == identity(None, "a", "b") != identity(None, "a", "c")
    for name in ("Tür", "门", "a" * 500, "#/+", None):
        id = identity(name, "rtsp://camera/#", "Is it on?")
        assert id.isascii() and id.replace("_", "").isalnum() and len(id) <= 50
    assert identity("门", "a", "b") != identity("窗", "a", "b")


@pytest.mark.parametrize(
    ("kind", "platform"), [("text", "sensor"), ("number", "sensor"), ("yes_no", "binary_sensor")]
)
def test_home_assistant_gets_what_its_schema_wants(kind: str, platform: str) -> None:
    """Its device discovery needs device, origin and components; each of these a platform and a unique id."""
    config = discovery("mvlm_door", "mvlm/mvlm_door", "Door", "Is it open? " * 20, kind, "°C", "V2")
    assert {"device", "origin", "components", "availability_topic"} <= config.keys()
    assert config["device"]["identifiers"] == ["mvlm_door"] and config["origin"]["name"]
    answer, picture = config["components"]["answer"], config["components"]["picture"]
    assert (answer["platform"], picture["platform"]) == (platform, "image")
    assert answer["default_entity_id"] == f"{platform}.mvlm_door"
    assert answer["unique_id"] != picture["unique_id"] and len(answer["name"]) <= 100
    assert (answer.get("payload_on") == "yes") == (kind == "yes_no")
    assert ("unit_of_measurement" in answer) == ("state_class" in answer) == (kind == "number")
    assert picture["image_topic"] == "mvlm/mvlm_door/picture" and picture["content_type"] == "image/jpeg"


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(
        UserError, match=r"--mqtt: the package paho-mqtt is not installed; pip install 'mvlm-np"
    ):
        Mqtt("mqtt://broker", "id", lambda base: {}, Notes(Clock()))


# ---------------------------------------------------------------- a real broker


class Broker:
    """Mosquitto on a port of its own, and what is retained there."""

    def __init__(self, folder: Path):
        self.folder, self._running = folder, None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        secret = folder / "passwords"
        subprocess.run(
            ["mosquitto_passwd", "-b", "-c", secret, "me", "p@ss"], check=True, capture_output=True
        )
        secret.chmod(0o644)
        folder.chmod(0o755)
        config = f"listener {self.port} 127.0.0.1\nallow_anonymous false\npassword_file {secret}\nuser root\n"
        (folder / "mosquitto.conf").write_text(config)

    _running: "subprocess.Popen[bytes] | None"

    def start(self) -> None:
        self._running = subprocess.Popen(
            ["mosquitto", "-c", self.folder / "mosquitto.conf"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(self._listens)

    def _listens(self) -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        if self._running is not None:
            self._running.terminate()
            self._running.wait(SOON)
            self._running = None

    @property
    def address(self) -> str:
        return f"mqtt://me:p%40ss@127.0.0.1:{self.port}"

    def retained(self, topic: str) -> bytes:
        """What a client gets that comes now; nothing if nothing is kept."""
        call = ["mosquitto_sub", "-h", "127.0.0.1", "-p", str(self.port), "-u", "me", "-P", "p@ss"]
        done = subprocess.run([*call, "-t", topic, "-C", "1", "-W", "2", "-N"], capture_output=True)
        return done.stdout


def until(seen: Callable[[], object]) -> None:
    end = time.monotonic() + SOON
    while not seen():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.fixture
def mosquitto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    pytest.importorskip("paho.mqtt.client")
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
    for name in ("mosquitto", "mosquitto_sub", "mosquitto_passwd"):
        if shutil.which(name) is None:
            pytest.skip(f"needs {name}: apt-get install mosquitto mosquitto-clients")
    running = Broker(tmp_path)
    running.start()
    yield running
    running.stop()


def connected(address: str, notes: Notes | None = None) -> Mqtt:
    return Mqtt(
        address, "mvlm_door", lambda base: discovery("mvlm_door", base, "Door", "Who?", "text", None, "V2"),
        notes or Notes(Clock()), wait=5.0,
    )  # fmt: skip


def test_all_that_is_published_is_retained(mosquitto: Broker) -> None:
    mqtt = connected(f"{mosquitto.address}/home")
    config = json.loads(mosquitto.retained("homeassistant/device/mvlm_door/config"))
    base = config["availability_topic"].removesuffix("/available")
    assert base == "home/mvlm_door" and mosquitto.retained(f"{base}/available") == b"online"
    long = "A cat. " * 60
    mqtt.put(replace(EVENT, answer=long, text=long), ROOM)
    until(lambda: mosquitto.retained(f"{base}/state"))
    state = json.loads(mosquitto.retained(config["components"]["answer"]["state_topic"]))
    assert state["state"] == long[:255] and state["answer"] == long and state["p"] == 0.9
    assert mosquitto.retained(config["components"]["picture"]["image_topic"]) == ROOM
    mqtt.put(replace(EVENT, answer=None, reason="none"), b"no picture")
    until(lambda: json.loads(mosquitto.retained(f"{base}/state"))["state"] is None)
    mqtt.present(False)
    until(lambda: mosquitto.retained(f"{base}/available") == b"offline")
    mqtt.present(True)
    until(lambda: mosquitto.retained(f"{base}/available") == b"online")
    mqtt.close()
    assert mosquitto.retained(f"{base}/available") == b"offline"


def test_who_is_killed_is_offline(mosquitto: Broker) -> None:
    code = f"""
import sys, time
from tests.watch.test_mqtt import *
mqtt = connected({mosquitto.address!r})
mqtt.put(EVENT, ROOM)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        until(lambda: mosquitto.retained("mvlm/mvlm_door/state"))
        assert mosquitto.retained("mvlm/mvlm_door/available") == b"online"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    until(lambda: mosquitto.retained("mvlm/mvlm_door/available") == b"offline")
    assert json.loads(mosquitto.retained("mvlm/mvlm_door/state"))["answer"] == "A cat"


def test_a_wrong_password_ends_it(mosquitto: Broker) -> None:
    with pytest.raises(UserError) as caught:
        connected(f"mqtt://me:wrong@127.0.0.1:{mosquitto.port}")
    said = str(caught.value)
    assert "the broker refuses us (Not authorized)" in said and "check user and password" in said
    assert "wrong" not in said and said.startswith(f"--mqtt mqtt://127.0.0.1:{mosquitto.port}: ")


def test_a_broker_that_goes_gets_everything_again(
    mosquitto: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    """It keeps nothing over its own end here; what was answered meanwhile is there, once it is back."""
    mqtt = connected(mosquitto.address)
    try:
        mqtt.put(EVENT, ROOM)
        until(lambda: mosquitto.retained("mvlm/mvlm_door/state"))
        mosquitto.stop()
        until(lambda: not mqtt._client.is_connected())
        for answer in range(1000):
            mqtt.put(replace(EVENT, answer=answer), ROOM)
        mosquitto.start()
        until(lambda: b"999" in mosquitto.retained("mvlm/mvlm_door/state"))
        assert mosquitto.retained("homeassistant/device/mvlm_door/config")
        assert mosquitto.retained("mvlm/mvlm_door/available") == b"online"
    finally:
        mqtt.close()
    said = capsys.readouterr().err
    assert "the connection is lost" in said and "is connected" in said and "p@ss" not in said


def test_a_broker_that_comes_later_is_waited_for(
    mosquitto: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    mosquitto.stop()
    mqtt = connected(mosquitto.address)
    try:
        mqtt.put(EVENT, ROOM)
        mosquitto.start()
        until(lambda: mosquitto.retained("mvlm/mvlm_door/state"))
    finally:
        mqtt.close()
    assert "the broker cannot be reached" in capsys.readouterr().err


def test_messages_do_not_pile_up(mosquitto: Broker) -> None:
    """A broker that does not answer any more looks as if it were there, for a while."""
    mqtt: Any = connected(mosquitto.address)
    running = mosquitto._running
    assert running is not None
    try:
        running.send_signal(signal.SIGSTOP)
        for answer in range(200):
            mqtt.put(replace(EVENT, answer=answer), ROOM)
        assert len(mqtt._client._out_messages) <= 60
    finally:
        running.send_signal(signal.SIGCONT)
        mqtt.close()
