"""Keys and certificates for tests, made with the ``openssl`` program."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its private key (PEM files)."""

    certificate: Path
    key: Path


def openssl_installed() -> bool:
    """Whether the program is on PATH."""
    return shutil.which("openssl") is not None


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def make_authority(folder: Path, name: str = "test-ca") -> KeyPair:
    """Make a certificate authority of our own."""
    made = KeyPair(folder / f"{name}.pem", folder / f"{name}.key")
    _openssl(
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"),
        *("-subj", f"/CN={name}", "-keyout", made.key, "-out", made.certificate),
        *("-addext", "keyUsage=critical,keyCertSign,digitalSignature"),
    )
    return made


def make_server_certificate(folder: Path, authority: KeyPair, name: str = "server") -> KeyPair:
    """Make a certificate for 127.0.0.1 and localhost, signed by ``authority``."""
    made = KeyPair(folder / f"{name}.pem", folder / f"{name}.key")
    request, extensions = folder / f"{name}.csr", folder / f"{name}.ext"
    extensions.write_text(
        "subjectAltName=IP:127.0.0.1,DNS:localhost\n"
        "extendedKeyUsage=serverAuth,clientAuth\n"
        "authorityKeyIdentifier=keyid\n"
    )
    _openssl(
        *("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"),
        *("-keyout", made.key, "-out", request),
    )
    _openssl(
        *("x509", "-req", "-in", request, "-days", "30", "-CAcreateserial"),
        *("-CA", authority.certificate, "-CAkey", authority.key),
        *("-extfile", extensions, "-out", made.certificate),
    )
    return made
