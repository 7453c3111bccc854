"""Who may ask at all: the checks that come before a request's body is read.

Host    Another site can have its own name point at this machine (DNS rebinding), and its pages then count as
        ours. So a name must be one that nobody can have in the public DNS.
Origin  A browser says which page sends a request. Another site's may not, though nothing else would stop it:
        for text/plain, browsers ask nobody's leave.
Key     Where there is one, it comes with each request, and not in the address, which is logged everywhere.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from mvlm_np.errors import UserError
from mvlm_np.serve.fields import shown
from mvlm_np.serve.refused import Refused

# Names under these are never in the public DNS: RFC 6761, RFC 6762, RFC 8375, and ICANN's .internal.
PRIVATE_NAMES = (".localhost", ".local", ".internal", ".home.arpa")
OPEN_PATHS = ("/", "/health", "/readyz")  # need no key
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Safety:
    """Which requests are let in.

    keys     any of which a request must bring; empty: none is needed
    hosts    names of this server besides those that it has anyway
    origins  whose pages may ask besides our own, such as "https://chat.example.org"
    """

    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def check(self, path: str, headers: Headers) -> str:
        """Which key came, a short name of it, "" if none is needed. Refused: the request is not let in."""
        self._check_host(headers.getlist("host"))
        for origin in headers.getlist("origin"):
            if not _same(origin, headers.get("host", "")) and origin not in self.origins:
                raise Refused("Origin", f"found {shown(origin)}", fix="--allow-origin lets it in", status=403)
        return "" if path in OPEN_PATHS else self._check_key(headers)

    def _check_host(self, hosts: Sequence[str]) -> None:
        if not hosts:  # HTTP/1.0, which no browser speaks
            return
        try:
            name = (urlsplit(f"//{hosts[0]}").hostname or "").rstrip(".").lower()
        except ValueError:
            name = ""
        if len(hosts) > 1 or not (name and (self._is_ours(name) or name in self.hosts)):
            found = f"found {shown(', '.join(hosts))}"
            raise Refused("Host", found, fix="--allow-host lets it in", status=403)

    def _is_ours(self, name: str) -> bool:
        """An address, which no DNS can move, a name without a dot, or one of a private domain."""
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return "." not in name or name.endswith(PRIVATE_NAMES)
        return True

    def _check_key(self, headers: Headers) -> str:
        if not self.keys:
            return ""
        given = headers.getlist("x-api-key")
        for value in headers.getlist("authorization"):
            kind, _, key = value.partition(" ")
            given.append(key.strip() if kind.lower() == "bearer" else "")
        # All are compared with all, so that the time tells nothing.
        matches = [[hmac.compare_digest(g.encode(), key.encode()) for key in self.keys] for g in given]
        if not given or not all([any(match) for match in matches]):
            found = "is wrong" if given else "is missing"
            ask = {"www-authenticate": "Bearer"}
            fix = "send it as Authorization: Bearer KEY"
            raise Refused("API key", found, fix=fix, status=401, code="invalid_api_key", headers=ask)
        return hashlib.sha256(given[0].encode()).hexdigest()[:8]


def _same(origin: str, host: str) -> bool:
    """Whether a page's origin is this server, by http or https: a proxy may have taken TLS off."""
    try:
        page, here = urlsplit(origin), urlsplit(f"//{host}")
        port = PORTS[page.scheme]
        ports = page.port or port, here.port or port
        same = bool(page.hostname) and page.hostname == here.hostname and ports[0] == ports[1]
        return same and origin.isprintable()  # urlsplit passes over some signs
    except (KeyError, ValueError):  # another scheme, or a port that is no number
        return False


def keys_in(text: str, where: str) -> tuple[str, ...]:
    """The keys of a file, one a line; empty lines and those that begin with # are passed over.

    UserError: there is none, or one that no header can carry.
    """
    lines = [line.strip() for line in text.splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise UserError(where, "holds no key", "one a line")
    for key in keys:
        if not (key.isascii() and key.isprintable() and " " not in key):
            found = "holds a key that no header can carry"
            raise UserError(where, found, "letters, digits and signs of ASCII")
    return keys


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach an address to listen on."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
