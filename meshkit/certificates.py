"""The certificate by which a process belongs to the mesh.

Its servers show it and ask every client for one of the same authority; its channels present it and check the other
side. It says that a process is of the mesh, and nothing of what it may do: that the token of each call says.

The files may be replaced at any time, as cert-manager does. Servers read them at the next handshake, channels at the
next call. New files that are of no use are told of once, and those before them stay in use.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self, cast

import grpc

from meshkit import metrics
from meshkit.errors import ErrorKind, MeshError
from meshkit.logging import get_logger

if TYPE_CHECKING:
    from cryptography import x509

    from meshkit.config import MeshSettings

_log = get_logger(__name__)

SETTINGS = ("ATELIER_TLS_CERTIFICATE", "ATELIER_TLS_KEY", "ATELIER_TLS_AUTHORITY")
"""The variables that name the files of a process's certificate."""

_LOOK_SECONDS = 1.0
_EXPIRY = metrics.gauge(
    "certificate_expires_seconds", "When the certificate of this process expires, in seconds since 1970", ("setting",)
)


class CertificateError(MeshError):
    """A file of a certificate is of no use; the message names its setting and the file."""

    def __init__(self, setting: str, file: Path, what: str) -> None:
        super().__init__(ErrorKind.INTERNAL, f"{setting} names {file}, which {what}", reason="CERTIFICATE_UNUSABLE")


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Files in PEM, and the settings that name them.

    Attributes:
        certificate: The certificate, and those between it and the authority.
        key: Its key, without a passphrase.
        authority: Certificates of the authorities that the other side's certificate may be from.
        settings: The variables that name the three.
    """

    certificate: Path
    key: Path
    authority: Path
    settings: tuple[str, str, str] = SETTINGS


class CertificateText(NamedTuple):
    """What the files hold."""

    certificate: bytes
    key: bytes
    authority: bytes


class MeshCertificate:
    """A certificate that is read again when its files change.

    Args:
        files: Its files.
        server_name: Name that servers have to prove in place of the host of their address; empty for that host.
        clock: Monotonic seconds.

    Raises:
        CertificateError: A file cannot be read, holds something else, or is out of date; or the key is another's.
    """

    def __init__(
        self, files: CertificateFiles, *, server_name: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._files = files
        self.server_name = server_name
        self._clock = clock
        self._lock = threading.Lock()  # a server's handshakes ask from threads of gRPC's own
        self._seen = self._marks()
        self._text = read(files)
        self._told = ""  # why the files that are there now are not taken
        self._looked = clock()

    @classmethod
    def from_settings(cls, settings: MeshSettings) -> Self | None:
        """Return the certificate that settings name; None for a mesh without.

        Raises:
            CertificateError: As the class does.
        """
        certificate, key, authority = settings.tls_certificate, settings.tls_key, settings.tls_authority
        if certificate is None or key is None or authority is None:
            return None
        return cls(CertificateFiles(certificate, key, authority), server_name=settings.tls_server_name)

    @property
    def text(self) -> CertificateText:
        """What the files hold; the same object until they change. Looks at them once a second at most."""
        with self._lock:
            if self._clock() - self._looked >= _LOOK_SECONDS:
                self._look()
            return self._text

    def _look(self) -> None:
        self._looked = self._clock()
        marks = self._marks()
        if marks == self._seen:
            return
        try:
            text = read(self._files)
        except CertificateError as error:
            # Read again at the next look: between two files that are being replaced, before a file may be read, or
            # where another clock is ahead. No mark tells of the end of the last two.
            if str(error) != self._told:
                self._told = str(error)
                _log.warning("certificate_not_taken", cause=self._told)
            return
        self._seen, self._told = marks, ""
        if text != self._text:
            self._text = text
            _log.info("certificate_taken", setting=self._files.settings[0])

    def _marks(self) -> tuple[object, ...]:
        return tuple(_mark(file) for file in (self._files.certificate, self._files.key, self._files.authority))

    def for_server(self) -> grpc.ServerCredentials:
        """Return what a server shows, and has every client show."""
        first = self.text
        given = [first]

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            with self._lock:
                self._look()
                text = self._text
            if text is given[0]:
                return None
            given[0] = text
            return _configuration(text)

        # None is "unchanged"; the types know of no such answer.
        fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", renewed)
        return grpc.dynamic_ssl_server_credentials(_configuration(first), fetch, require_client_authentication=True)


def for_channel(text: CertificateText) -> grpc.ChannelCredentials:
    """Return what a channel presents, and holds servers to."""
    return grpc.ssl_channel_credentials(text.authority, text.key, text.certificate)


def _configuration(text: CertificateText) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(text.key, text.certificate)], root_certificates=text.authority)


def _mark(file: Path) -> object:
    """Return what tells a file from the one that was there before."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def read(files: CertificateFiles) -> CertificateText:
    """Read and check the files of a certificate.

    Args:
        files: The files.

    Raises:
        CertificateError: As `MeshCertificate` does.
    """
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 -- only where a mesh has certificates

    names = files.settings
    own = _certificates(names[0], files.certificate)
    authorities = _certificates(names[2], files.authority)
    _check_dates(names[0], files.certificate, own[1][0])
    if all(one.not_valid_after_utc < dt.datetime.now(dt.UTC) for one in authorities[1]):
        _check_dates(names[2], files.authority, authorities[1][0])
    key = _bytes(names[1], files.key)
    try:
        public = serialization.load_pem_private_key(key, None).public_key()
    except (ValueError, TypeError):  # the cause would quote the file; the second is a passphrase that it needs
        raise CertificateError(names[1], files.key, "holds no key in PEM without a passphrase") from None
    if public != own[1][0].public_key():
        raise CertificateError(names[1], files.key, f"is not the key of the certificate {files.certificate}")
    _EXPIRY.labels(names[0]).set(own[1][0].not_valid_after_utc.timestamp())
    return CertificateText(own[0], key, authorities[0])


def _certificates(setting: str, file: Path) -> tuple[bytes, list[x509.Certificate]]:
    from cryptography import x509  # noqa: PLC0415 -- as above

    content = _bytes(setting, file)
    try:
        return content, x509.load_pem_x509_certificates(content)
    except ValueError:
        raise CertificateError(setting, file, "holds no certificate in PEM") from None


def _bytes(setting: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CertificateError(setting, file, f"cannot be read: {error.strerror}") from None


def _check_dates(setting: str, file: Path, certificate: x509.Certificate) -> None:
    now, begins, ends = dt.datetime.now(dt.UTC), certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > ends:
        raise CertificateError(setting, file, f"expired at {ends.isoformat()}")
    if now < begins:
        raise CertificateError(setting, file, f"is not valid before {begins.isoformat()}")


def dns_name(certificate: bytes) -> str:
    """Return the name that a certificate is for: its first DNS name, else its first address; empty where it has none.

    Args:
        certificate: In PEM.
    """
    from cryptography import x509  # noqa: PLC0415 -- as above

    [first, *_] = x509.load_pem_x509_certificates(certificate)
    try:
        names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    found = names.get_values_for_type(x509.DNSName) or [str(one) for one in names.get_values_for_type(x509.IPAddress)]
    return found[0] if found else ""
