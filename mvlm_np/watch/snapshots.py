"""Pictures from an address that gives one each time it is asked: a camera's snapshot."""

from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib import request
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit, urlunsplit

from mvlm_np.errors import UserError
from mvlm_np.watch.clock import Clock
from mvlm_np.watch.jpeg import MOST, Splitter
from mvlm_np.watch.process import printable
from mvlm_np.watch.sources import READ, Backoff, Frame, Polled

TIMEOUT = 10.0  # seconds without an answer, and for a whole picture


class Snapshots(Polled):
    """http:// or https://; a user and a password in the address are sent as the camera wants them.

    Of an endless stream of JPEGs (multipart/x-mixed-replace) the first one is taken each time.
    """

    live = True

    def __init__(self, address: str, every: float, clock: Clock, backoff: Backoff | None = None):
        """UserError: the address is none."""
        super().__init__(printable(address), every, clock)
        self._address, self._opener = opener(address)
        self._backoff, self._worked = backoff or Backoff(), False

    def _look(self) -> Frame | None:
        try:
            with self._opener.open(self._address, timeout=TIMEOUT) as response:
                data = self._read(response)
        except HTTPError as error:
            error.close()
            said = f"answers {error.code} {error.reason}"
            if not self._worked and error.code in WRONG:
                raise UserError(self.name, said, fix=WRONG[error.code]) from None
            self._fail(said)
            return None
        except (OSError, HTTPException) as error:
            self._fail(f"cannot be read ({getattr(error, 'reason', None) or error})")
            return None
        if not data:
            self._fail("gives no picture")
            return None
        self._backoff.worked()
        self.gone, self._worked = "", True
        return Frame(data)

    def _fail(self, why: str) -> None:
        self.gone = printable(why)
        self._due = self.clock.now() + self._backoff.failed()

    def _read(self, response: HTTPResponse) -> bytes:
        split = Splitter() if response.headers.get_content_maintype() == "multipart" else None
        data, latest = bytearray(), self.clock.now() + TIMEOUT
        while part := response.read1(READ):
            if self.clock.now() > latest:
                raise OSError(f"a picture takes longer than {TIMEOUT:g} s")
            if split:
                if frames := split.push(part):
                    return frames[0]
            else:
                data += part
                if len(data) > MOST:
                    raise OSError(f"a picture is larger than {MOST >> 20} MB")
        return bytes(data)


# What waiting does not mend.
WRONG = {
    401: "put user and password into it: http://user:password@camera/...",
    403: "check user and password",
    404: "check the address in a browser",
    410: "check the address in a browser",
}


def opener(address: str) -> tuple[str, Any]:
    """The address without user and password, and what opens it with them.

    UserError: it is no address.
    """
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(printable(address), f"is no address ({error})", "http://camera/...") from None
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(printable(address), "is no address", "http://camera/... or https://camera/...")
    plain = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    if parts.username is None:
        return plain, request.build_opener()
    known = request.HTTPPasswordMgrWithDefaultRealm()
    known.add_password(None, plain, unquote(parts.username), unquote(parts.password or ""))
    return plain, request.build_opener(
        request.HTTPBasicAuthHandler(known), request.HTTPDigestAuthHandler(known)
    )
