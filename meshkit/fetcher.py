"""Fetch addresses that callers name. The only place that does.

An address is parsed once, its name resolved once, every resolved address checked, and the connection made to exactly
the address that was checked: no second look-up could answer differently. Redirects are checked the same way.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from meshkit.errors import MeshError, invalid, too_large, unavailable
from meshkit.logging import get_logger
from meshkit.lookups import NameLookups
from meshkit.pinned import pinned_client

if TYPE_CHECKING:
    import httpx

    from meshkit.config import MeshSettings

_log = get_logger(__name__)

MAX_REDIRECTS = 3
MAX_URL_CHARS = 4096
_DEFAULT_PORTS = {"http": 80, "https": 443}
# What stores and servers say of a file whose type they were not told, which says nothing of it.
_UNTYPED = frozenset({"", "application/octet-stream", "binary/octet-stream"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

# What a resolver answers of a name that does not exist, or has no address; not every system knows the second. Any other
# answer (EAI_AGAIN, EAI_FAIL, EAI_SYSTEM, ...) is about the resolver and not about the name.
_NO_SUCH_NAME = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

# Last parts of names that no public name has (RFC 6761, RFC 6762, RFC 8375, and what clouds use).
_INNER_NAMES = frozenset({"localhost", "local", "internal", "intranet", "lan", "home", "corp", "private", "arpa"})

# `ipaddress` counts these as global although they lead to private addresses: prefixes that carry an IPv4 address.
_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
_REFUSED = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; some clouds keep metadata there
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local; 169.254.169.254 is the clouds' metadata
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/127",
        "100::/64",
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",  # 6to4, given up by RFC 7526; Pythons differ on whether it is private
        "3fff::/20",
        "5f00::/16",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
    )
)


@dataclass(frozen=True, slots=True)
class FetchedContent:
    """What was fetched.

    Attributes:
        data: The body.
        content_type: Media type as the server names it, lower case, without parameters.
        url: Address it came from, after redirects.
    """

    data: bytes
    content_type: str
    url: str


@dataclass(frozen=True, slots=True)
class PostReply:
    """What is read of the answer to a post.

    Attributes:
        status: HTTP status.
        retry_after: The header of that name as it came; empty without.
    """

    status: int
    retry_after: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """An address that passed the static checks."""

    url: str
    host: str
    port: int


def check_url(url: str, *, path: str = "url") -> Target:
    """Check the form of an address; a `Fetcher` checks where it leads.

    Args:
        url: The address.
        path: Path of the request's member, for the error.

    Returns:
        Its parts.

    Raises:
        MeshError: `INVALID` for a scheme other than http and https, credentials, a malformed host.
    """
    if len(url) > MAX_URL_CHARS:
        raise invalid(path, f"must have at most {MAX_URL_CHARS} characters", "url_too_long")
    # Parsers disagree on these, which is how an address passes one of them and reaches another host by the next.
    if any(ord(c) <= 32 or ord(c) == 127 or c in '\\"<>^`{|}' for c in url):
        raise invalid(path, "is not a valid URL", "url_parsing")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise invalid(path, "is not a valid URL", "url_parsing") from None
    if parts.scheme.lower() not in _DEFAULT_PORTS:
        raise invalid(path, "must be http or https", "url_scheme")
    if parts.username is not None or parts.password is not None:
        raise invalid(path, "must not contain credentials", "url_credentials")
    if not host or port == 0:
        raise invalid(path, "is not a valid URL", "url_parsing")
    return Target(url, _ascii_host(host, path), port or _DEFAULT_PORTS[parts.scheme.lower()])


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public Internet.

    Args:
        address: The address; IPv4 within IPv6 (mapped, NAT64) is checked by the address it carries.
    """
    return all(_is_plainly_public(inner) for inner in _carried(address))


class Fetcher:
    """Fetches addresses of callers, and posts to them.

    Args:
        allow_private: `host:port` or CIDR that may be reached although it is private.
        resolver: Gives the addresses of a name, or raises `socket.gaierror`; the system's where absent, with a share
            of its look-ups for each tenant.
    """

    def __init__(self, allow_private: Iterable[str] = (), *, resolver: Resolver | None = None) -> None:
        self._allowed_hosts: set[tuple[str, int]] = set()
        self._allowed_networks: list[Network] = []
        for entry in allow_private:
            host, _, port = entry.rpartition(":")
            if "/" not in entry and port.isdigit() and host:
                self._allowed_hosts.add((host.strip("[]").lower(), int(port)))
            else:
                self._allowed_networks.append(ipaddress.ip_network(entry, strict=False))
        self._resolver = resolver
        self._lookups = NameLookups()

    @classmethod
    def from_settings(cls, settings: MeshSettings) -> Fetcher:
        """Build the fetcher that the settings describe."""
        return cls(settings.fetch_allow_private)

    async def fetch(
        self,
        url: str,
        max_bytes: int,
        timeout: float,  # noqa: ASYNC109 -- covers resolving, redirects and body together
        *,
        content_types: Sequence[str] = (),
        path: str = "url",
        tenant: str = "",
    ) -> bytes:
        """Fetch an address's body.

        Args:
            url: The address.
            max_bytes: Bytes at most, after decompression.
            timeout: Seconds in all, redirects included.
            content_types: Beginnings of the media types that are accepted (`image/`); any where absent. What comes
                without a type, or as mere bytes, is accepted too: its reader judges it by its content.
            path: Path of the request's member, for the error.
            tenant: Whose address it is: look-ups are shared fairly between tenants.

        Raises:
            MeshError: `INVALID` for an address that may not be fetched or a wrong media type, `TOO_LARGE`,
                `UNAVAILABLE` where the other side does not deliver.
        """
        full = await self.fetch_full(url, max_bytes, timeout, content_types=content_types, path=path, tenant=tenant)
        return full.data

    async def fetch_full(
        self,
        url: str,
        max_bytes: int,
        timeout: float,  # noqa: ASYNC109 -- of the whole exchange, told as such
        *,
        content_types: Sequence[str] = (),
        path: str = "url",
        tenant: str = "",
    ) -> FetchedContent:
        """As `fetch`, with the media type and the address after redirects."""
        import httpx  # noqa: PLC0415 -- a fifth of a second that most processes never need

        accepted = _Accepted(max_bytes, tuple(content_types), path)
        try:
            async with asyncio.timeout(timeout):
                for _ in range(MAX_REDIRECTS + 1):
                    addresses = await self.addresses(self.check(url, path=path), path=path, tenant=tenant)
                    outcome = await _get(url, addresses, timeout, accepted)
                    if isinstance(outcome, FetchedContent):
                        return outcome
                    url = outcome
        except TimeoutError:
            raise unavailable(f"{path} was not delivered in time", reason="FETCH_TIMEOUT") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            _log.info("fetch_failed", cause=type(error).__name__)
            raise unavailable(f"{path} could not be fetched", reason="FETCH_FAILED") from None
        raise invalid(path, f"redirects more than {MAX_REDIRECTS} times", "url_redirects")

    async def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        timeout: float,  # noqa: ASYNC109 -- of the whole exchange, told as such
        *,
        path: str = "url",
        tenant: str = "",
    ) -> PostReply:
        """Send a body to an address; follows no redirect, and reads nothing of the answer's body.

        Args:
            url: The address.
            body: What is sent.
            headers: Headers beside those of HTTP itself.
            timeout: Seconds in all.
            path: Path of the member that names the address, for the error.
            tenant: Whose address it is: look-ups are shared fairly between tenants.

        Returns:
            What came, whatever its status is.

        Raises:
            MeshError: `INVALID` for an address that may not be reached, `UNAVAILABLE` where nothing answers.
        """
        import httpx  # noqa: PLC0415 -- only in a process that fetches

        try:
            async with asyncio.timeout(timeout):
                addresses = await self.addresses(self.check(url, path=path), path=path, tenant=tenant)
                async with (
                    pinned_client(addresses, timeout) as client,
                    client.stream(
                        "POST", url, content=body, headers={**headers, "accept": "*/*", "user-agent": "atelier"}
                    ) as response,
                ):
                    return PostReply(response.status_code, response.headers.get("retry-after", ""))
        except TimeoutError:
            raise unavailable(f"{path} did not answer in time", reason="FETCH_TIMEOUT") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            _log.info("post_failed", cause=type(error).__name__)
            raise unavailable(f"{path} could not be reached", reason="FETCH_FAILED") from None

    def check(self, url: str, *, path: str = "url") -> Target:
        """Check an address as far as possible without a look-up, e.g. when a request that names it is accepted.

        What a name resolves to is checked when it is fetched, because the answer may change until then.

        Args:
            url: The address.
            path: Path of the request's member, for the error.

        Returns:
            Its parts.

        Raises:
            MeshError: `INVALID` for what `check_url` refuses, and for an address or name that is plainly private.
        """
        target = check_url(url, path=path)
        if (target.host, target.port) in self._allowed_hosts:
            return target
        literal = _literal(target.host)
        inner = target.host.rstrip(".").rpartition(".")[2] in _INNER_NAMES
        if inner or (literal is not None and not self._may_reach(literal, target.port)):
            raise _private(path)
        return target

    async def addresses(self, target: Target, *, path: str = "url", tenant: str = "") -> list[str]:
        """Resolve a target and check every address; all must be public, because a name may answer with a mixture.

        Args:
            target: What `check_url` gave.
            path: Path of the request's member, for the error.
            tenant: Whose look-up it is.

        Returns:
            The addresses that may be connected to.

        Raises:
            MeshError: `INVALID` where one is not public, or the name does not exist; `UNAVAILABLE` where the resolver
                cannot tell right now.
        """
        try:
            found = await self._resolve(target, tenant)
        except UnicodeError:
            found = []  # such a name cannot exist: a part of it is too long
        except socket.gaierror as error:
            if error.errno not in _NO_SUCH_NAME:
                _log.warning("name_not_resolved", cause=error.errno)
                raise unavailable(f"The host of {path} cannot be looked up right now", reason="DNS_FAILED") from None
            found = []
        if not found:
            raise invalid(path, "names a host that does not exist", "url_host")
        if (target.host, target.port) not in self._allowed_hosts:
            for text in found:
                if not self._may_reach(ipaddress.ip_address(text.partition("%")[0]), target.port):
                    raise _private(path)
        return list(found)

    async def _resolve(self, target: Target, tenant: str) -> Sequence[str]:
        if self._resolver is not None:
            return await self._resolver(target.host, target.port)
        return await self._lookups.resolve(target.host, target.port, tenant)

    def _may_reach(self, address: Address, port: int) -> bool:
        return (
            is_public(address)
            or (str(address), port) in self._allowed_hosts
            or any(address in network for network in self._allowed_networks)
        )


@dataclass(frozen=True, slots=True)
class _Accepted:
    """What is accepted of an answer."""

    max_bytes: int
    content_types: tuple[str, ...]
    path: str


async def _get(url: str, addresses: Sequence[str], seconds: float, accepted: _Accepted) -> FetchedContent | str:
    """Return what an address answers, or the address that it redirects to."""
    path = accepted.path
    async with (
        pinned_client(addresses, seconds) as client,
        client.stream("GET", url, headers={"accept": "*/*", "user-agent": "atelier"}) as response,
    ):
        if response.status_code in _REDIRECTS and "location" in response.headers:
            return urljoin(url, response.headers["location"])
        if response.status_code >= 500 or response.status_code == 429:
            raise unavailable(f"{path} is not delivered right now", reason="FETCH_FAILED")
        if response.status_code != 200:
            raise invalid(path, f"answers with status {response.status_code}", "url_status")
        if "," in response.headers.get("content-encoding", ""):
            # Each coding multiplies what a piece of the body becomes; one is within bounds, several are not.
            raise invalid(path, "is compressed more than once", "url_content_encoding")
        content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if accepted.content_types and not (content_type in _UNTYPED or content_type.startswith(accepted.content_types)):
            raise invalid(path, "is of a media type that is not accepted here", "url_content_type")
        return FetchedContent(await _body(response, accepted.max_bytes, path), content_type, url)


async def _body(response: httpx.Response, max_bytes: int, path: str) -> bytes:
    too_many = too_large(f"{path} has more than {max_bytes} bytes")
    declared = response.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_many
    parts: list[bytes] = []
    size = 0
    # Decoded in bounded pieces: a compressed bomb ends at the limit.
    async for chunk in response.aiter_bytes(65536):
        size += len(chunk)
        if size > max_bytes:
            raise too_many
        parts.append(chunk)
    return b"".join(parts)


def _ascii_host(host: str, path: str) -> str:
    if host.startswith("[") or ":" in host:
        return host
    try:
        ascii_host = host.encode("idna").decode("ascii").lower() if not host.isascii() else host.lower()
    except UnicodeError:
        raise invalid(path, "is not a valid URL", "url_parsing") from None
    # `2130706433`, `0x7f.1` and `127.1` are addresses to the system's resolver and to nobody else.
    last = ascii_host.rstrip(".").rpartition(".")[2]
    if (last.isdigit() or last.startswith("0x")) and _literal(ascii_host) is None:
        raise invalid(path, "is not a valid URL", "url_parsing")
    return ascii_host


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _private(path: str) -> MeshError:
    message = (
        "leads to an address that may not be fetched: it is private, and ATELIER_FETCH_ALLOW_PRIVATE does not name it"
    )
    return invalid(path, message, "url_private")


def _carried(address: Address) -> Iterable[Address]:
    yield address
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            yield address.ipv4_mapped
        if any(address in network for network in _NAT64) or int(address) >> 32 == 0:
            yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


def _is_plainly_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return True  # checked by the address it carries
    if any(address in network for network in _REFUSED if network.version == address.version):
        return False
    return not (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
    ) or any(address in network for network in _NAT64 if network.version == address.version)
