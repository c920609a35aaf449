"""Signatures of checkpoints (OpenSSF model signing), and whose signatures a node trusts."""

from __future__ import annotations

import base64
import binascii
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd.checkpoints.manifest import MANIFEST_NAME, SIGNATURE_NAME, CheckpointError

PRIVATE_NAME, PUBLIC_NAME = "signing.key", "signing.pub"
MAX_SIGNATURE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class TrustPolicy:
    """Whose checkpoints a node takes: with `require_signature` only signed ones.

    A signature that is there is always checked once any key, root certificate or identity is trusted.
    `certificates` are roots of signing certificates; `identity` and `issuer` name a Sigstore signer, checked
    against `trust_config` (a file; without it the public instance's is fetched from the network).
    """

    require_signature: bool = False
    public_keys: Sequence[Path] = ()
    certificates: Sequence[Path] = ()
    identity: str = ""
    issuer: str = ""
    trust_config: Path | None = None

    @property
    def trusts_anyone(self) -> bool:
        """Whether at least one key, certificate or identity is trusted."""
        return bool(self.public_keys or self.certificates or self.identity)


def generate_keys(folder: Path) -> tuple[Path, Path]:
    """Write a new P-256 key pair; (private, public) paths. CheckpointError when one is there already."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private, public = folder / PRIVATE_NAME, folder / PUBLIC_NAME
    for path in (private, public):
        if path.exists():
            raise CheckpointError(f"'{path}' exists already and is left alone; give another folder")
    key = ec.generate_private_key(ec.SECP256R1())
    folder.mkdir(parents=True, exist_ok=True)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(secret)
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def sign(folder: Path, private_key: Path) -> Path:
    """Sign a checkpoint folder with an EC private key (PEM), offline; the path of its model.sig."""
    from model_signing import signing

    try:
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _unusable_key(private_key, error) from error
    return _write(config, folder)


def sign_with_certificate(folder: Path, private_key: Path, certificate: Path, chain: Sequence[Path] = ()) -> Path:
    """Sign with the private key of a signing certificate (PEM), offline; the path of its model.sig."""
    from model_signing import signing

    try:
        config = signing.Config().use_certificate_signer(
            private_key=private_key, signing_certificate=certificate, certificate_chain=[*chain, certificate]
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _unusable_key(certificate, error) from error
    return _write(config, folder)


def sign_with_sigstore(folder: Path, identity_token: str = "", trust_config: Path | None = None) -> Path:
    """Sign without a key through Sigstore, which needs the network; the path of its model.sig.

    Without an OIDC `identity_token` the one of the surrounding CI is used, or a browser asks for it.
    """
    from model_signing import signing

    try:
        config = signing.Config().use_sigstore_signer(
            identity_token=identity_token or None, use_ambient_credentials=True, trust_config=trust_config
        )
        return _write(config, folder)
    except CheckpointError:
        raise
    except Exception as error:  # the library's network and identity errors share no class
        raise CheckpointError(f"Sigstore could not sign: {_line(error)}; sign with a key of your own") from error


def signer_of(folder: Path) -> str:
    """How a folder is signed: `key:FINGERPRINT`, `certificate`, `sigstore`, or '' when it is not signed.

    The claim of the signature itself, not verified.
    """
    path = folder / SIGNATURE_NAME
    return _claim(_read_bundle(path)) if path.is_file() else ""


def key_claim(key: Path) -> str:
    """`key:FINGERPRINT` as `signer_of` gives it for what this private or public key (PEM) signed."""
    import hashlib

    from cryptography.hazmat.primitives import serialization as pem

    text = public_key(key).public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    return f"key:{hashlib.sha256(text).hexdigest()}"


def public_key(key: Path) -> Any:
    """The public half of a private or public key (PEM); CheckpointError when the file is none."""
    from cryptography.hazmat.primitives import serialization as pem

    try:
        data = key.read_bytes()
        private = b"PRIVATE KEY" in data
        return pem.load_pem_private_key(data, None).public_key() if private else pem.load_pem_public_key(data)
    except (OSError, ValueError, TypeError) as error:
        raise _unusable_key(key, error) from error


def private_key(key: Path) -> Any:
    """A private key (PEM, without a password); CheckpointError when the file is none."""
    from cryptography.hazmat.primitives import serialization as pem

    try:
        return pem.load_pem_private_key(key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise _unusable_key(key, error) from error


def check_policy(policy: TrustPolicy) -> None:
    """CheckpointError when the policy can accept nothing: no key where signatures are required, or no key in a file."""
    if policy.require_signature and not policy.trusts_anyone:
        raise CheckpointError(
            "signatures are required but no key is trusted; name one: serving.trusted_keys=[FILE] or --trusted-key FILE"
        )
    for key in policy.public_keys:
        key_claim(Path(key))


def verify(folder: Path, policy: TrustPolicy) -> None:
    """CheckpointError unless the folder's signature, or its absence, is what `policy` accepts.

    Every file but model.sig is hashed and has to be covered by the signature, manifest.json included. With
    public keys and certificates nothing asks the network.
    """
    if not policy.trusts_anyone:
        check_policy(policy)
        return
    path = folder / SIGNATURE_NAME
    if not path.is_file():
        if policy.require_signature:
            raise CheckpointError(f"{_reference(folder)} is not signed, and only signed checkpoints are taken here")
        return
    bundle = _read_bundle(path)
    config = _verifier(bundle, policy, _reference(folder))
    try:
        config.set_hashing_config(_hashing()).verify(folder, path)
    except Exception as error:  # cryptography, OpenSSL and sigstore errors share no class
        raise CheckpointError(f"{_reference(folder)}: the signature does not hold: {_line(error)}") from error
    _require_coverage(folder, bundle)


def _verifier(bundle: dict[str, Any], policy: TrustPolicy, reference: str) -> Any:
    """A verification of the kind that the bundle needs, with what the policy trusts for that kind."""
    from model_signing import verifying

    claim = _claim(bundle)
    if claim.startswith("key:"):
        matching = [key for key in policy.public_keys if key_claim(Path(key)) == claim]
        if matching:
            return verifying.Config().use_elliptic_key_verifier(public_key=Path(matching[0]))
    elif claim == "certificate" and policy.certificates:
        return verifying.Config().use_certificate_verifier(certificate_chain=list(policy.certificates))
    elif claim == "sigstore" and policy.identity:
        try:
            return verifying.Config().use_sigstore_verifier(
                identity=policy.identity, oidc_issuer=policy.issuer, trust_config=policy.trust_config
            )
        except Exception as error:
            raise CheckpointError(f"Sigstore's trust root could not be had: {_line(error)}") from error
    shown = f"key {claim[4:16]}" if claim.startswith("key:") else f"a {claim} signature"
    raise CheckpointError(
        f"{reference} was signed by {shown}, which is not trusted here; name its public key "
        "(serving.trusted_keys, --trusted-key or --key) if you trust it"
    )


def _hashing() -> Any:
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(paths=[SIGNATURE_NAME], ignore_git_paths=False)


def _write(config: Any, folder: Path) -> Path:
    """Sign, and give the signature its name in one step."""
    if not (folder / MANIFEST_NAME).is_file():
        raise CheckpointError(f"'{folder}' is no published checkpoint: it has no {MANIFEST_NAME}; publish it first")
    target, part = folder / SIGNATURE_NAME, folder.with_name(f".{uuid.uuid4().hex}.part")
    try:
        config.set_hashing_config(_hashing()).sign(folder, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _read_bundle(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_SIGNATURE_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        bundle = json.loads(path.read_text(encoding="utf-8"))
        _claim(bundle)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{SIGNATURE_NAME} is no signature: {_line(error)}; sign the checkpoint again") from error
    return dict(bundle)


def _claim(bundle: dict[str, Any]) -> str:
    material = bundle["verificationMaterial"]
    if "publicKey" in material:
        return f"key:{material['publicKey']['hint']}"
    return "certificate" if "x509CertificateChain" in material else "sigstore"


def _require_coverage(folder: Path, bundle: dict[str, Any]) -> None:
    """No file may lie there that the (by now verified) signature does not name, by whatever rule it leaves it out."""
    try:
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        signed = {str(resource["name"]) for resource in statement["predicate"]["resources"]}
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise CheckpointError(f"{SIGNATURE_NAME} names no files: {_line(error)}; sign the checkpoint again") from error
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in sorted(there - signed - {SIGNATURE_NAME}):
        raise CheckpointError(f"{_reference(folder)}: '{name}' is not covered by the signature; sign it again")


def _reference(folder: Path) -> str:
    try:
        facts = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        return f"{facts['name']}:{facts['version']}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"'{folder.name}'"


def _unusable_key(path: Path, error: Exception) -> CheckpointError:
    reason = "it does not exist" if isinstance(error, FileNotFoundError) else _line(error)
    return CheckpointError(f"'{path}' cannot be used as a key: {reason}; `fedkd keys new FOLDER` makes a pair")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
