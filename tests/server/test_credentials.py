"""Certificates and keys that OpenSSL and ssh take for what they are."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from server.credentials import CA, CERTIFICATE, KEY, make_certificates, make_node_key


@pytest.mark.parametrize("address", ["127.0.0.1", "cloud.example.org"])
def test_the_superlinks_certificate_is_the_authoritys_and_names_its_address(tmp_path: Path, address: str) -> None:
    make_certificates(tmp_path, [address])
    kind = "-verify_ip" if address[0].isdigit() else "-verify_hostname"
    command = ["openssl", "verify", "-x509_strict", "-CAfile", str(tmp_path / CA), kind, address]
    assert subprocess.run([*command, str(tmp_path / CERTIFICATE)], capture_output=True).returncode == 0
    wrong = ["openssl", "verify", "-CAfile", str(tmp_path / CA), "-verify_hostname", "other.example.org"]
    assert subprocess.run([*wrong, str(tmp_path / CERTIFICATE)], capture_output=True).returncode != 0
    assert (tmp_path / KEY).stat().st_mode & 0o077 == 0


def test_another_authority_does_not_vouch(tmp_path: Path) -> None:
    for name in ("one", "other"):
        make_certificates(tmp_path / name, ["127.0.0.1"])
    command = ["openssl", "verify", "-CAfile", str(tmp_path / "other" / CA), str(tmp_path / "one" / CERTIFICATE)]
    assert subprocess.run(command, capture_output=True).returncode != 0
    certificate = x509.load_pem_x509_certificate((tmp_path / "one" / CA).read_bytes())
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_nodes_key_is_what_flower_takes(tmp_path: Path) -> None:
    private, public = make_node_key(tmp_path, "edge-0")
    key = load_ssh_private_key(private.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp384r1"
    known = load_ssh_public_key(public.read_bytes())
    assert isinstance(known, ec.EllipticCurvePublicKey) and known.public_numbers() == key.public_key().public_numbers()
    assert private.stat().st_mode & 0o077 == 0
