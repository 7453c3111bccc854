"""Pictures of which a request sends only the address, where the server's owner allows that.

Who may have a server fetch addresses may have it knock at doors that only the server can reach: other
programs on its machine, the router, a cloud's metadata (SSRF). So a name is resolved once, each address that
it has must be one of the public internet, and the connection goes to that very address, whatever the name
says by then. A host that the owner has listed may be anywhere.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from re import search
from threading import BoundedSemaphore, Thread
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit

import h11

import mvlm_np
from mvlm_np.inputs.picture_file import Encoded
from mvlm_np.serve.pictures import Link, not_sent
from mvlm_np.serve.refused import Refused

PORTS = {"http": 80, "https": 443}
MOST = 10_000_000  # bytes of a picture
SECONDS = 10.0  # for all pictures of a request
AT_ONCE, EACH = 12, 3  # connections, of all requests and of one
LOOKUPS = BoundedSemaphore(16)  # names being looked up, those among them that nobody waits for any more
HEADER = 16_384  # bytes of a reply's header
LONGEST = 2_000  # characters of an address
READ = 8_192  # bytes at a time; of the smallest chunks, that is what h11 takes some milliseconds for
HINTS = 10  # replies before the reply (100 Continue, 103 Early Hints)
IN_PATHS = "/%:=&?~+!$,;'@()*[]"  # signs that stay as they are
GLOBAL, NAT64 = IPv6Network("2000::/3"), IPv6Network("64:ff9b::/96")

Address = tuple[str, int]  # of IP, and a port


async def resolve(host: str, port: int) -> list[str]:
    """The IP addresses that a host has. OSError, UnicodeError: there are none.

    The system's resolver takes as long as it likes, and cannot be cancelled. So it has a thread of its own,
    which neither other work nor the end of the server waits for. There are not many such threads.
    """
    places = LOOKUPS
    if not places.acquire(blocking=False):
        raise OSError("too many names are being looked up")
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[Any]] = loop.create_future()

    def say(answer: Callable[[Any], None], value: object) -> None:
        if not found.done():  # it is, once nobody waits any more
            answer(value)

    def look() -> None:
        try:
            with suppress(RuntimeError):  # the loop has ended meanwhile
                try:
                    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                    loop.call_soon_threadsafe(say, found.set_result, addresses)
                except (OSError, UnicodeError) as error:
                    loop.call_soon_threadsafe(say, found.set_exception, error)
        finally:
            places.release()

    try:
        Thread(target=look, name="resolving", daemon=True).start()
    except RuntimeError as error:
        places.release()
        raise OSError(str(error)) from None
    return list(dict.fromkeys(str(one[4][0]) for one in await found))


async def connect(
    address: Address, tls: ssl.SSLContext | None, host: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to an address of IP. host: whose certificate it must show, with TLS."""
    return await asyncio.open_connection(*address, ssl=tls, server_hostname=host if tls else None)


@dataclass
class Fetching:
    """Gets pictures from their addresses.

    public  whether from the public internet, at the usual ports
    hosts   from which besides, wherever they are: "camera.local", "192.168.1.7", with one port "camera:8080"
            Neither of the two: every address is refused
    seconds for all pictures of a request

    The others are for tests.
    """

    public: bool = False
    hosts: Sequence[str] = ()
    seconds: float = SECONDS
    tls: ssl.SSLContext | None = None
    resolve: Callable[[str, int], Awaitable[list[str]]] = resolve
    connect: Callable[..., Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = connect

    def __post_init__(self) -> None:
        self._places = asyncio.Semaphore(AT_ONCE)
        self._hosts = frozenset(host.lower().rstrip(".") for host in self.hosts)
        if self.tls is None and (self.public or self.hosts):  # certificates, which take time and memory
            self.tls = ssl.create_default_context()

    async def all(self, pictures: Sequence[Encoded | Link], take: Callable[[int], None]) -> list[Encoded]:
        """Pictures in their order, those fetched that are addresses; an address that comes again, once.

        take  told how many bytes have come, as they come; may refuse them

        Refused, which names the picture: there is none to be had.
        """
        links = [picture for picture in pictures if isinstance(picture, Link)]
        if links and not (self.public or self.hosts):
            raise not_sent(links[0], f"is a URL of {links[0].url.partition(':')[0].lower()}:")
        asked = {link.url: Where.of(link) for link in links}
        for where in asked.values():
            self._allow(where)
        got, begun, ours = dict[str, bytes](), set[str](), asyncio.Semaphore(EACH)

        async def get(url: str, where: Where) -> None:
            async with ours, self._places:
                begun.add(url)
                got[url] = await self._get(where, take)

        try:
            async with asyncio.timeout(self.seconds), asyncio.TaskGroup() as group:
                for url, where in asked.items():
                    group.create_task(get(url, where))
        except* Refused as several:
            refused = several.exceptions[0]
        except* TimeoutError:
            late = next((url for url in asked if url in begun and url not in got), None)
            if late is None:  # others' pictures hold all places
                wait = {"retry-after": str(round(self.seconds) or 1)}
                refused = Refused("server", "is fetching too many pictures", status=503, headers=wait)
            else:
                refused = asked[late].refusal(f"has not come within {self.seconds:g} s")
        else:
            return [Encoded(got[p.url], p.name) if isinstance(p, Link) else p for p in pictures]
        raise refused from None

    def _allow(self, where: "Where") -> None:
        """Refused: nobody has allowed this address."""
        if where.is_listed(self._hosts):
            return
        if not self.public:
            where.refuse("is at a host from which nothing is fetched")
        if where.port != PORTS[where.scheme]:
            where.refuse(f"is at port {where.port}", "no port, as usual")

    async def _get(self, where: "Where", take: Callable[[int], None]) -> bytes:
        try:
            addresses = await self.resolve(where.host, where.port)
        except (OSError, UnicodeError):
            addresses = []
        listed = where.is_listed(self._hosts)
        # In one sentence, so that nobody learns which names there are within the house.
        if not addresses or not (listed or all(is_public(a) and not is_near(a) for a in addresses)):
            where.refuse("is at a host that cannot be found" + ("" if listed else ", or is not public"))
        reader, writer = await self._connected(where, addresses)
        try:
            return await _exchange(where, reader, writer, take)
        except (OSError, h11.ProtocolError):
            where.refuse("broke off, or is not HTTP")
        finally:
            writer.transport.abort()  # a farewell might take as long as the server likes

    async def _connected(self, where: "Where", addresses: Sequence[str]) -> Any:
        """A connection to the first address that takes one."""
        tls = self.tls if where.scheme == "https" else None
        for address in addresses:
            try:
                # A share of the time, so that an address that swallows everything leaves some for the next.
                share = self.seconds / len(addresses) if address != addresses[-1] else None
                async with asyncio.timeout(share):
                    return await self.connect((address, where.port), tls, where.host)
            except ssl.SSLError:
                where.refuse("has no certificate that holds for its name")
            except OSError:
                continue
        where.refuse("is at a host that does not answer")


@dataclass(frozen=True)
class Where:
    """An address in its parts.

    host    in small letters, without a dot behind it or brackets around it
    target  path and query, as HTTP has them
    """

    link: Link
    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def of(cls, link: Link) -> "Where":
        """Refused: it is not written as one. What two programs might read in two ways, nobody reads here."""
        url = link.url
        if len(url) > LONGEST:
            raise link.refusal(f"has {len(url)} characters", f"at most {LONGEST}")
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            raise link.refusal("is no address") from None
        authority = parts.netloc
        if search(r"[\x00-\x20\x7f\\]", url) or not host or not search(r"^[a-z0-9._:-]+$", host):
            raise link.refusal("is no address", "http://host/picture.jpg, its host in ASCII")
        if "@" in authority:
            raise link.refusal("has a user's name in it", "an address without")
        target = quote(parts.path or "/", safe=IN_PATHS)
        if parts.query:
            target += "?" + quote(parts.query, safe=IN_PATHS)
        return cls(link, parts.scheme, host, PORTS[parts.scheme] if port is None else port, target)

    @property
    def header(self) -> str:
        """As `Host` has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    def is_listed(self, hosts: frozenset[str]) -> bool:
        """Whether the owner has listed it, with its port or without."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return bool({self.host, host, f"{host}:{self.port}"} & hosts)

    def refusal(self, found: str, wanted: str | None = None) -> Refused:
        return self.link.refusal(found, wanted)

    def refuse(self, found: str, wanted: str | None = None) -> NoReturn:
        raise self.refusal(found, wanted)


def is_public(text: str) -> bool:
    """Whether an IP address is one of the public internet.

    What carries another address within it (IPv4 in IPv6, 6to4, Teredo) is none, but for NAT64, by which
    networks of IPv6 alone reach the others.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv6Address):
        if address in NAT64:
            return is_public(str(IPv4Address(int(address) & 0xFFFF_FFFF)))
        if address not in GLOBAL or address.sixtofour or address.teredo:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def is_near(text: str) -> bool:
    """Whether an IP address is this machine's own or, with IPv6, one of its network's (/56).

    In a house with IPv6 every machine has a public address, and only the router keeps strangers out.
    """
    there = ip_address(text)
    family = socket.AF_INET6 if there.version == 6 else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((text, 9))  # sends nothing, and chooses the address that we would have there
        ours, others = ip_address(probe.getsockname()[0].partition("%")[0]), 72 if there.version == 6 else 0
        return int(ours) >> others == int(there) >> others
    return False


async def _exchange(
    where: Where, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, take: Callable[[int], None]
) -> bytes:
    """Asks for a picture on a connection. Refused: the answer is none."""
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEADER)
    headers = {
        "Host": where.header,
        "User-Agent": f"mvlm-np/{mvlm_np.__version__}",
        "Accept": "image/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    asked = h11.Request(method="GET", target=where.target, headers=[*headers.items()])
    writer.write(http.send(asked) + http.send(h11.EndOfMessage()))
    data, came, hints = bytearray(), 0, 0
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            part = await reader.read(READ)
            await asyncio.sleep(0)  # whoever sends faster than this reads leaves room for others
            if (came := came + len(part)) > 2 * MOST:  # also what is no part of the picture
                where.refuse("is too large", f"at most {MOST:,} bytes")
            http.receive_data(part)
        elif isinstance(event, h11.InformationalResponse):
            if (hints := hints + 1) > HINTS:
                where.refuse("broke off, or is not HTTP")
        elif isinstance(event, h11.Response):
            _check(where, event)
        elif isinstance(event, h11.Data):
            if len(data) + len(event.data) > MOST:
                where.refuse("is too large", f"at most {MOST:,} bytes")
            take(len(event.data))
            data += event.data
        elif isinstance(event, h11.EndOfMessage):
            return bytes(data)


def _check(where: Where, response: h11.Response) -> None:
    """Refused: what follows is no picture."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
    if 300 <= response.status_code < 400:
        where.refuse("only says that the picture is elsewhere", "the picture's own address")
    if response.status_code != 200:
        where.refuse(f"answers with status {response.status_code}", "200")
    if not headers.get("content-type", "").lower().startswith("image/"):
        where.refuse("is no picture by its Content-Type", "image/jpeg or the like")
    if headers.get("content-encoding", "identity").lower() != "identity":
        where.refuse("is compressed once more", "the picture's file as it is")
    length = headers.get("content-length", "0")
    if len(length) > 18 or int(length) > MOST:
        where.refuse("is too large", f"at most {MOST:,} bytes")
