"""Signatures: made offline with an own key, and everything that was not signed by a trusted one is refused."""

from __future__ import annotations

import base64
import datetime
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedkd.checkpoints.manifest import MANIFEST_NAME, SIGNATURE_NAME, CheckpointError
from fedkd.checkpoints.registry import Registry
from fedkd.checkpoints.signing import (
    TrustPolicy,
    generate_keys,
    key_claim,
    sign,
    sign_with_certificate,
    signer_of,
    verify,
)
from tests.checkpoints.folders import make_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture()
def version(tmp_path: Path) -> Path:
    registry = Registry(tmp_path / "registry")
    return registry.resolve(registry.publish(make_model(tmp_path / "model"), name="m").reference)


@pytest.fixture()
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return generate_keys(tmp_path / "keys")


def trusting(*public: Path) -> TrustPolicy:
    return TrustPolicy(require_signature=True, public_keys=public)


def test_a_signed_version_is_accepted_and_says_who_signed(version: Path, keys: tuple[Path, Path]) -> None:
    assert signer_of(version) == ""
    assert sign(version, keys[0]) == version / SIGNATURE_NAME
    verify(version, trusting(keys[1]))
    assert signer_of(version) == key_claim(keys[0]) == key_claim(keys[1])
    assert [path.name for path in version.parent.iterdir()] == ["v0"]


def test_the_trusted_key_may_be_any_of_several(version: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    sign(version, keys[0])
    verify(version, trusting(generate_keys(tmp_path / "other")[1], keys[1]))


def test_another_key_is_refused_and_named(version: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    sign(version, generate_keys(tmp_path / "other")[0])
    for required in (True, False):
        with pytest.raises(CheckpointError, match=r"m:v0 was signed by key [0-9a-f]{12}, which is not trusted"):
            verify(version, TrustPolicy(required, [keys[1]]))


def test_a_signature_that_claims_another_key_does_not_hold(
    version: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    path = sign(version, generate_keys(tmp_path / "other")[0])
    bundle = json.loads(path.read_text())
    bundle["verificationMaterial"]["publicKey"]["hint"] = key_claim(keys[1]).partition(":")[2]
    path.write_text(json.dumps(bundle))
    with pytest.raises(CheckpointError, match="does not hold"):
        verify(version, trusting(keys[1]))


def test_an_unsigned_version_is_refused_only_where_signatures_are_required(
    version: Path, keys: tuple[Path, Path]
) -> None:
    verify(version, TrustPolicy())
    verify(version, TrustPolicy(False, [keys[1]]))
    with pytest.raises(CheckpointError, match="m:v0 is not signed"):
        verify(version, trusting(keys[1]))
    with pytest.raises(CheckpointError, match=r"no key is trusted.*serving\.trusted_keys"):
        verify(version, trusting())


def test_one_flipped_bit_in_any_file_is_refused(version: Path, keys: tuple[Path, Path]) -> None:
    sign(version, keys[0])
    files = [path for path in version.rglob("*") if path.is_file() and path.name != SIGNATURE_NAME]
    assert {path.name for path in files} >= {MANIFEST_NAME, "model_index.json", "w.safetensors"}
    for path in files:
        whole = path.read_bytes()
        path.chmod(0o644)
        for place in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(CheckpointError, match="does not hold"):
                verify(version, trusting(keys[1]))
        path.write_bytes(whole)
    verify(version, trusting(keys[1]))


def test_added_removed_and_linked_files_are_refused(version: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    sign(version, keys[0])
    for name in ("extra.json", ".git/config", ".gitattributes"):
        (version / name).parent.mkdir(exist_ok=True)
        (version / name).write_text("{}")
        with pytest.raises(CheckpointError, match="does not hold"):
            verify(version, trusting(keys[1]))
        (version / name).unlink()
    weights = version / "unet/w.safetensors"
    weights.rename(tmp_path / "w")
    with pytest.raises(CheckpointError, match="does not hold"):
        verify(version, trusting(keys[1]))
    weights.symlink_to(tmp_path / "w")
    with pytest.raises(CheckpointError, match="does not hold"):
        verify(version, trusting(keys[1]))


def test_a_flipped_bit_in_the_signature_is_refused(version: Path, keys: tuple[Path, Path]) -> None:
    path = sign(version, keys[0])
    bundle = json.loads(path.read_text())
    for where in ("payload", "sig"):
        changed = json.loads(json.dumps(bundle))
        holder = changed["dsseEnvelope"] if where == "payload" else changed["dsseEnvelope"]["signatures"][0]
        data = bytearray(base64.b64decode(holder[where]))
        data[len(data) // 2] ^= 1
        holder[where] = base64.b64encode(bytes(data)).decode()
        path.write_text(json.dumps(changed))
        with pytest.raises(CheckpointError):
            verify(version, trusting(keys[1]))


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"verificationMaterial": {}}', '{"verificationMaterial": {"publicKey": {}}}', "\x80"],
)
def test_a_malformed_signature_is_refused_in_one_line(text: str, version: Path, keys: tuple[Path, Path]) -> None:
    (version / SIGNATURE_NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError) as refused:
        verify(version, trusting(keys[1]))
    assert "\n" not in str(refused.value)


def test_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    private, public = generate_keys(tmp_path)
    assert private.stat().st_mode & 0o077 == 0 and b"PRIVATE" not in public.read_bytes()
    with pytest.raises(CheckpointError, match="exists already"):
        generate_keys(tmp_path)


def test_a_bad_key_is_named_with_the_fix(version: Path, tmp_path: Path) -> None:
    (tmp_path / "not.key").write_text("no key")
    for path in (tmp_path / "none.key", tmp_path / "not.key"):
        with pytest.raises(CheckpointError, match=f"'{path}' cannot be used as a key.*fedkd keys new"):
            sign(version, path)
    assert not (version / SIGNATURE_NAME).exists()


def certificate(folder: Path) -> tuple[Path, Path, Path]:
    """A root certificate, a signing certificate from it and the key of the latter."""
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def issue(name: str, public: ec.EllipticCurvePublicKey, is_root: bool) -> x509.Certificate:
        builder = x509.CertificateBuilder(
            issuer_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")]),
            subject_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]),
            public_key=public,
            serial_number=x509.random_serial_number(),
            not_valid_before=now - day,
            not_valid_after=now + day,
        ).add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
        usage = {name: False for name in ("content_commitment", "key_encipherment", "data_encipherment")}
        usage |= {"key_agreement": False, "crl_sign": is_root, "encipher_only": False, "decipher_only": False}
        builder = builder.add_extension(
            x509.KeyUsage(digital_signature=not is_root, key_cert_sign=is_root, **usage), critical=True
        )
        return builder.sign(root_key, hashes.SHA256())

    folder.mkdir()
    paths = folder / "root.pem", folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(issue("root", root_key.public_key(), True).public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(issue("server", key.public_key(), False).public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    paths[2].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return paths


def test_a_certificate_is_accepted_by_its_root_and_by_no_other(
    version: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    root, leaf, key = certificate(tmp_path / "one")
    other, *_ = certificate(tmp_path / "two")
    sign_with_certificate(version, key, leaf)
    verify(version, TrustPolicy(True, certificates=[root]))
    with pytest.raises(CheckpointError, match="does not hold"):
        verify(version, TrustPolicy(True, certificates=[other]))
    with pytest.raises(CheckpointError, match="a certificate signature, which is not trusted"):
        verify(version, trusting(keys[1]))


OFFLINE = """
import socket, sys
def refuse(*arguments, **named):
    print("asked the network for", arguments[:2]); sys.stdout.flush(); import os; os._exit(3)
socket.getaddrinfo = socket.create_connection = socket.socket.connect = socket.socket.connect_ex = refuse
from pathlib import Path
from fedkd.checkpoints.signing import TrustPolicy, generate_keys, sign, verify
folder, keys = Path(sys.argv[1]), generate_keys(Path(sys.argv[2]))
sign(folder, keys[0])
verify(folder, TrustPolicy(True, [keys[1]]))
assert not {"torch", "diffusers", "flwr"} & set(sys.modules)
print("done")
"""


def test_keys_signing_and_checking_never_ask_the_network(version: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", OFFLINE, str(version), str(tmp_path / "fresh")]
    home = {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, env=home, timeout=120)
    assert done.stdout.strip() == "done", done.stdout + done.stderr
    assert not (tmp_path / "home").exists()


def test_the_library_s_own_command_accepts_what_was_signed(version: Path, keys: tuple[Path, Path]) -> None:
    sign(version, keys[0])
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(version)]
    command += ["--signature", str(version / SIGNATURE_NAME), "--public_key", str(keys[1])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
