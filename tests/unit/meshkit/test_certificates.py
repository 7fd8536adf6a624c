"""The certificate of a process: what is refused, by which sentence, and what a renewal is."""

import os
import re
from pathlib import Path

import pytest

from meshkit.certificates import SETTINGS, CertificateError, CertificateFiles, MeshCertificate, dns_name, read
from meshkit.config import MeshSettings
from tests.certificates import Authority

SECRET = "s" * 32


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
def files(authority: Authority) -> CertificateFiles:
    certificate, key = authority.issue("service", dns=["tasks", "tasks.atelier"])
    return CertificateFiles(certificate, key, authority.file)


def refusal(files: CertificateFiles) -> str:
    with pytest.raises(CertificateError) as refused:
        read(files)
    return refused.value.message


def test_a_certificate_is_known_by_its_first_name(files: CertificateFiles, authority: Authority) -> None:
    assert dns_name(read(files).certificate) == "tasks"
    assert dns_name(authority.issue("nameless")[0].read_bytes()) == "127.0.0.1"


@pytest.mark.parametrize("part", ["certificate", "key", "authority"])
@pytest.mark.parametrize(
    ("damage", "cause"), [("missing", "cannot be read"), ("wrong", "holds no (certificate|key) in PEM")]
)
def test_a_file_of_no_use_is_named_with_its_setting(
    files: CertificateFiles, part: str, damage: str, cause: str
) -> None:
    file: Path = getattr(files, part)
    if damage == "missing":
        file.unlink()
    else:
        file.write_text("no PEM, but a secret")
    message = refusal(files)
    setting = SETTINGS[("certificate", "key", "authority").index(part)]
    assert message.startswith(f"{setting} names {file}, which ")
    assert re.search(cause, message)
    assert "secret" not in message


def test_a_certificate_that_is_out_of_date_is_told_by_its_date(files: CertificateFiles, authority: Authority) -> None:
    for hours, cause in (((-3.0, -1.0), "expired at 20"), ((1.0, 3.0), "is not valid before 20")):
        certificate, key = authority.issue("late", hours=hours)
        message = refusal(CertificateFiles(certificate, key, files.authority))
        assert message.startswith(f"ATELIER_TLS_CERTIFICATE names {certificate}, which {cause}")


def test_the_key_of_another_certificate_is_refused(files: CertificateFiles, authority: Authority) -> None:
    _, other = authority.issue("other")
    message = refusal(CertificateFiles(files.certificate, other, files.authority))
    assert message == f"ATELIER_TLS_KEY names {other}, which is not the key of the certificate {files.certificate}"


@pytest.mark.parametrize("given", [SETTINGS[:1], SETTINGS[1:], SETTINGS[:2], SETTINGS[2:]])
def test_settings_in_part_are_refused_by_the_name_of_what_is_missing(
    given: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in given:
        monkeypatch.setenv(name, "/run/file.pem")
    with pytest.raises(ValueError, match=r"a certificate takes three settings") as refused:
        MeshSettings(auth_secret=SECRET)
    for name in SETTINGS:
        assert (name in str(refused.value)) == (name not in given)


def test_without_settings_there_is_no_certificate(files: CertificateFiles) -> None:
    assert MeshCertificate.from_settings(MeshSettings(auth_secret=SECRET)) is None
    named = MeshSettings(
        auth_secret=SECRET, tls_certificate=files.certificate, tls_key=files.key, tls_authority=files.authority
    )
    found = MeshCertificate.from_settings(named)
    assert found is not None
    assert found.text == read(files)


def test_renewed_files_are_taken_once_they_belong_together(files: CertificateFiles, authority: Authority) -> None:
    clock = Clock()
    certificate = MeshCertificate(files, clock=clock)
    first = certificate.text
    new, key = authority.issue("renewed")
    files.certificate.write_bytes(new.read_bytes())
    clock.now = 1.0
    assert certificate.text is first, "the key is still the old one's"
    files.key.write_bytes(key.read_bytes())
    assert certificate.text is first, "it looks once a second"
    clock.now = 2.0
    renewed = certificate.text
    assert renewed.certificate == new.read_bytes()
    clock.now = 3.0
    assert certificate.text is renewed


def test_files_that_become_of_use_are_taken_although_their_time_and_size_stay(
    files: CertificateFiles, authority: Authority
) -> None:
    clock = Clock()
    certificate = MeshCertificate(files, clock=clock)
    first = certificate.text
    new, key = authority.issue("renewed")
    files.certificate.write_bytes(new.read_bytes())
    files.key.write_bytes(b"-" * len(key.read_bytes()))
    written = files.key.stat()
    clock.now = 1.0
    assert certificate.text is first
    # As where the rights to read a file, or the hour from which it is valid, come after the file.
    files.key.write_bytes(key.read_bytes())
    os.utime(files.key, ns=(written.st_atime_ns, written.st_mtime_ns))
    clock.now = 2.0
    assert certificate.text == read(files)
    assert certificate.text.certificate == new.read_bytes()


def test_files_that_went_away_leave_the_certificate_in_use(files: CertificateFiles) -> None:
    clock = Clock()
    certificate = MeshCertificate(files, clock=clock)
    first = certificate.text
    files.certificate.unlink()
    clock.now = 1.0
    assert certificate.text is first
