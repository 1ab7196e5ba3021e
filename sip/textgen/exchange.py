"""One HTTP exchange that is bounded in time and size, whatever the server sends.

The HTTP library limits the time between two reads only: a server that sends a byte now and then,
in its headers or its body, would keep a request for days. It also unpacks an answer of any size.
"""

import ipaddress
import os
import socket
import threading
import zlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from sip.structs import UserError

MOST_BYTES = 16 << 20  # of an answer, packed and unpacked; a thousand long texts fit
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")


class Wire:
    """A connection to a server that is kept between requests; for one request at a time."""

    def __init__(self, client, seconds: float):
        self._client, self._seconds = client, seconds
        self._socket: Any = None
        self._late = False

    def post(self, url: str, body: bytes, headers: Mapping[str, str]):
        """Sends a request. Returns (status, headers, content).

        Raises TimeoutError if the answer is not complete in time, ValueError if it is too large or
        cannot be unpacked, and the HTTP library's errors.
        """
        self._late = False
        timer = threading.Timer(self._seconds, self._expire)
        timer.daemon = True
        timer.start()
        how = {"content": body, "headers": headers, "extensions": {"trace": self._trace}}
        try:
            with self._client.stream("POST", url, **how) as response:
                return response.status_code, response.headers, _content(response)
        except Exception as error:
            if self._late:
                problem = f"answer incomplete after {self._seconds:g} s"
                raise TimeoutError(problem) from None
            raise error
        finally:
            timer.cancel()

    def hang_up(self) -> None:
        """Ends the connection. A request that waits on it in another thread fails at once."""
        try:
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # closed already

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def _expire(self) -> None:
        self._late = True
        self.hang_up()

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Called by the HTTP library for each of its steps; notes the socket of the connection."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")
            if self._late:
                self.hang_up()


def _content(response) -> bytes:
    """Reads and unpacks the content of a response; at most MOST_BYTES."""
    data = bytearray()
    for part in response.iter_raw():
        data += part
        _check_size(data)
    packing = response.headers.get("content-encoding", "identity").strip().lower()
    if packing in ("", "identity"):
        return bytes(data)
    if packing not in ("gzip", "x-gzip", "deflate"):
        raise ValueError(f"answer is packed by {packing}, which was not asked for")
    try:
        plain = zlib.decompressobj(47).decompress(data, MOST_BYTES + 1)  # 47: gzip or zlib
    except zlib.error as error:
        raise ValueError(f"answer cannot be unpacked: {error}") from None
    _check_size(plain)
    return plain


def _check_size(data) -> None:
    if len(data) > MOST_BYTES:
        raise ValueError(f"answer is larger than {MOST_BYTES >> 20} MiB")


class Wires:
    """The connections of one call, opened as its threads need them."""

    def __init__(self, network: "Network"):
        self._network, self._all, self._idle = network, list[Wire](), list[Wire]()

    def post(self, url: str, body: bytes, headers: Mapping[str, str]):
        """Sends a request through an idle connection, see `Wire.post`; for any thread."""
        try:
            wire = self._idle.pop()
        except IndexError:
            wire = self._network.wire()
            self._all.append(wire)
        try:
            return wire.post(url, body, headers)
        finally:
            self._idle.append(wire)

    def hang_up(self) -> None:
        """Makes all requests in flight fail at once."""
        for wire in self._all:
            wire.hang_up()

    def close(self) -> None:
        """Closes all connections."""
        for wire in self._all:
            wire.close()


class Network:
    """The way from this machine to the server at `url`: proxies and certificates.

    They are those of the environment's variables; a loopback server is asked without a proxy.
    Raises UserError if the HTTP library is missing, or if it cannot use one of the variables.
    """

    def __init__(self, url: str, seconds: float):
        self.http = _http()
        self._seconds, self._direct = seconds, _is_loopback(url)
        try:
            self.http.URL(url)
        except (self.http.InvalidURL, UnicodeError) as error:
            raise UserError(f"url {url!r} cannot be used: {error}") from None
        try:
            self._tls = self.http.create_ssl_context()  # slow, so created once
        except OSError as error:
            said = f"{named(CERTIFICATES)}: the certificates cannot be read ({error})"
            raise UserError(f"{said}; correct or unset it") from None
        try:
            self.wire().close()
        except Exception as error:  # ValueError, ImportError and the library's own InvalidURL
            said = " ".join(str(error).split())
            raise UserError(f"{named(PROXIES)}: cannot be used ({said}); unset it") from None

    def wire(self) -> Wire:
        """Returns a connection, not yet opened."""
        limit = self.http.Timeout(self._seconds, connect=min(self._seconds, 10.0))
        how = {"timeout": limit, "verify": self._tls, "follow_redirects": False}
        return Wire(self.http.Client(**how, trust_env=not self._direct), self._seconds)

    def hint(self, problem: str) -> str:
        """Returns the environment's variables that may have caused a failed connection."""
        if "CERTIFICATE_VERIFY_FAILED" in problem:
            return "; SSL_CERT_FILE names the file of trusted certificates"
        used = "" if self._direct else named(PROXIES[:3])
        return f"; asked through the proxy in {used}" if used else ""


def named(variables) -> str:
    """Returns the names of those `variables` that are set, in either case."""
    known = {*variables, *map(str.upper, variables)}
    return ", ".join(sorted(name for name in known if os.environ.get(name)))


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _http():
    try:
        import httpx
    except ImportError:
        raise UserError("the HTTP backend needs httpx: pip install 'sip-jax[serve]'") from None
    return httpx
