"""Answers over MQTT, and to Home Assistant, which finds by itself what there is (its device discovery).

For a watch of the id ID, all retained:

homeassistant/device/ID/config  what there is, in Home Assistant's words
mvlm/ID/state                   the last answer, JSON as on standard output; `state` is cut at 255 characters
mvlm/ID/picture                 the picture it is about, JPEG
mvlm/ID/available               online or offline; the broker itself says offline when we are gone (last will)
"""

import json
import re
import threading
from contextlib import suppress
from hashlib import sha256
from typing import Any
from urllib.parse import unquote, urlsplit

import mvlm_np
from mvlm_np.errors import ImageError, UserError
from mvlm_np.watch.notes import Notes
from mvlm_np.watch.outputs import Event
from mvlm_np.watch.pictures import as_jpeg
from mvlm_np.watch.process import printable

STATE = 255  # characters of a state, at most, in Home Assistant
SIDE = 1280  # pixels of a picture's longer side
WAIT = 10.0  # seconds for the first connection, before work begins without
QUEUED = 20  # messages that wait for a broker, at most


def identity(name: str | None, source: str, question: str) -> str:
    """The id of a watch: from its name, or from what is asked about what. It stays the same over restarts."""
    if name:
        slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        if slug:
            return f"mvlm_{slug[:40]}"
    return f"mvlm_{sha256(f'{name}|{source}|{question}'.encode()).hexdigest()[:10]}"


def discovery(
    id: str, base: str, name: str, question: str, kind: str, unit: str | None, model: str
) -> dict[str, Any]:
    """What Home Assistant is told about a watch.

    base  topic under which the watch's own are
    kind  of its answers: "text", "number" or "yes_no"
    """
    platform = "binary_sensor" if kind == "yes_no" else "sensor"
    answer: dict[str, Any] = {
        "platform": platform,
        "unique_id": f"{id}_answer",
        "default_entity_id": f"{platform}.{id}",
        "name": question[:100],
        "state_topic": f"{base}/state",
        "value_template": "{{ value_json.state }}",
        "json_attributes_topic": f"{base}/state",
        "icon": "mdi:eye",
    }
    if kind == "yes_no":
        answer |= {"payload_on": "yes", "payload_off": "no"}
    if kind == "number":
        answer |= {"state_class": "measurement", **({"unit_of_measurement": unit} if unit else {})}
    picture = {
        "platform": "image",
        "unique_id": f"{id}_picture",
        "default_entity_id": f"image.{id}",
        "name": "Picture",
        "image_topic": f"{base}/picture",
        "content_type": "image/jpeg",
    }
    return {
        "device": {"identifiers": [id], "name": name, "manufacturer": "mvlm-np", "model": model},
        "origin": {"name": "mvlm-np", "sw_version": mvlm_np.__version__},
        "availability_topic": f"{base}/available",
        "components": {"answer": answer, "picture": picture},
        "qos": 1,
    }


class Mqtt:
    """A connection to a broker, kept up in a thread of paho-mqtt. It comes back by itself, and then says all
    that is known; what is old by then is not queued.

    address  mqtt://USER:PASSWORD@HOST:PORT/TOPIC, or mqtts:// for TLS; all but the host may be left out
    config   what `discovery` gives, by the topic under which the watch's own are
    """

    def __init__(self, address: str, id: str, config: Any, notes: Notes, wait: float = WAIT):
        """UserError: it is no such address, or the broker refuses us. Unreachable ones are waited for."""
        try:
            import paho.mqtt.client as paho
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError:
            fix = "pip install 'mvlm-np[mqtt]'"
            raise UserError("--mqtt", "the package paho-mqtt is not installed", fix=fix) from None
        self._where, host, port, user, password, top = broker(address)
        self.base, self._notes = f"{top}/{id}", notes
        self._config_topic, self._config = f"homeassistant/device/{id}/config", config(self.base)
        self._state: str | None = None
        self._picture: bytes | None = None
        self._there, self._refused, self._tried = True, "", threading.Event()
        self._client = client = paho.Client(CallbackAPIVersion.VERSION2, client_id=id)
        client.max_queued_messages_set(QUEUED)
        client.reconnect_delay_set(1, 60)
        client.will_set(f"{self.base}/available", "offline", qos=1, retain=True)
        if user is not None:
            client.username_pw_set(user, password)
        if address.lower().startswith("mqtts"):
            client.tls_set()
        client.on_connect, client.on_connect_fail = self._connected, self._unreachable
        client.on_disconnect = self._disconnected
        client.connect_async(host, port, keepalive=30)
        client.loop_start()
        self._tried.wait(wait)
        if self._refused:
            client.loop_stop()
            raise UserError(f"--mqtt {self._where}", self._refused, fix="check user and password")

    def put(self, event: Event, picture: bytes) -> None:
        """See `Output`."""
        state = event.answer[:STATE] if isinstance(event.answer, str) else event.answer
        self._state = json.dumps({"state": state, **json.loads(event.json())}, ensure_ascii=False)
        try:
            self._picture = as_jpeg(picture, SIDE)
        except ImageError:  # whose answer is there all the same
            self._picture = None
        if self._client.is_connected():
            self._publish_answer()

    def present(self, there: bool) -> None:
        """See `Output`."""
        self._there = there
        if self._client.is_connected():
            self._publish("available", "online" if there else "offline")

    def close(self) -> None:
        """See `Output`."""
        self._client.on_disconnect = None
        said = self._publish("available", "offline") if self._client.is_connected() else None
        with suppress(ValueError, RuntimeError):  # too many wait already, or the connection is lost
            if said is not None:
                said.wait_for_publish(2.0)
                if said.is_published():
                    self._client.disconnect()  # else the broker finds us gone, and says so itself
        self._client.loop_stop()

    def _publish(self, topic: str, payload: str | bytes) -> Any:
        return self._client.publish(f"{self.base}/{topic}", payload, qos=1, retain=True)

    def _publish_answer(self) -> None:
        if self._state is not None:
            self._publish("state", self._state)
        if self._picture is not None:
            self._publish("picture", self._picture)

    # In paho's thread:

    def _connected(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._refused = f"the broker refuses us ({reason})"
            self._notes.say(f"--mqtt {self._where}", self._refused if self._tried.is_set() else "")
        else:
            self._refused = ""
            client.publish(self._config_topic, json.dumps(self._config), qos=1, retain=True)
            self._publish_answer()
            self._publish("available", "online" if self._there else "offline")
            self._notes.say(f"--mqtt {self._where}", "", well="is connected")
        self._tried.set()

    def _unreachable(self, client: Any, userdata: Any) -> None:
        self._notes.say(f"--mqtt {self._where}", "the broker cannot be reached; it is tried again and again")
        self._tried.set()

    def _disconnected(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if not self._refused:
            self._notes.say(f"--mqtt {self._where}", f"the connection is lost ({reason}); it is tried again")


def broker(address: str) -> tuple[str, str, int, str | None, str | None, str]:
    """What an address of a broker says: itself without a password, host, port, user, password, topic.

    UserError: it is none.
    """
    wanted = "mqtt://USER:PASSWORD@HOST, or mqtts:// for TLS"
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        raise UserError("--mqtt", f"found {printable(address)!r} ({error})", wanted) from None
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.query or parts.fragment:
        raise UserError("--mqtt", f"found {printable(address)!r}", wanted)
    topic = unquote(parts.path).strip("/") or "mvlm"
    if any(c in topic for c in "+#\0"):
        raise UserError("--mqtt", f"found the topic {topic!r}", "one without + and #")
    user, password = (None if part is None else unquote(part) for part in (parts.username, parts.password))
    port = port or (8883 if parts.scheme == "mqtts" else 1883)
    return printable(address), parts.hostname, port, user, password, topic
