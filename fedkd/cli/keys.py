"""`fedkd keys`: make signing keys, sign a published checkpoint, check a signature."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedkd.cli.console import fail, guard

Folder = Annotated[Path, typer.Argument(help="The folder of a published version: REGISTRY/versions/NAME/vN")]

keys = typer.Typer(
    help="Make signing keys; sign a published checkpoint, or check its signature, with a key, a certificate or "
    "Sigstore.\n\nExample: fedkd keys new ~/.fedkd",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@keys.command("new")
def new(folder: Annotated[Path, typer.Argument(help="Where to write signing.key and signing.pub")]) -> None:
    """Make an elliptic-curve key pair. Nothing is overwritten, and nothing needs the network.

    Example: fedkd keys new ~/.fedkd
    """
    from fedkd.checkpoints.signing import generate_keys

    with guard():
        private, public = generate_keys(folder.expanduser())
        print(f"private key, to stay on the server: {private}\n  fedkd simulate quickstart run.signing_key={private}")
        print(
            f"public key, for edges and users: {public}\n"
            f"  serving.trusted_keys=[{public}] serving.require_signature=true"
        )


@keys.command("sign")
def sign(
    folder: Folder,
    key: Annotated[Path | None, typer.Option(help="Private key (PEM), e.g. signing.key")] = None,
    certificate: Annotated[Path | None, typer.Option(help="Signing certificate (PEM) of that key")] = None,
    chain: Annotated[list[Path] | None, typer.Option(help="Certificate between it and the root; repeatable")] = None,
    sigstore: Annotated[bool, typer.Option("--sigstore", help="Sign with your identity; needs the network")] = False,
    identity_token: Annotated[str, typer.Option(help="OIDC token for --sigstore. Default: CI's, or a browser")] = "",
) -> None:
    """Sign a published version: with a key, with a key and its certificate, or with Sigstore.

    Example: fedkd keys sign checkpoints/registry/versions/tiny-sd/v1 --key ~/.fedkd/signing.key
    """
    if sigstore == (key is not None):
        fail("give one of --key FILE (with or without --certificate FILE) and --sigstore")
    from fedkd.checkpoints import signing
    from fedkd.checkpoints.blobs import verify_folder

    with guard():
        verify_folder(folder)
        if key is None:
            path = signing.sign_with_sigstore(folder, identity_token)
        elif certificate is None:
            path = signing.sign(folder, key.expanduser())
        else:
            path = signing.sign_with_certificate(folder, key.expanduser(), certificate, chain or [])
        print(f"signed: {path}")


@keys.command("verify")
def verify(
    folder: Folder,
    key: Annotated[list[Path] | None, typer.Option(help="Trusted public key (PEM); repeatable")] = None,
    certificate: Annotated[list[Path] | None, typer.Option(help="Trusted root certificate (PEM); repeatable")] = None,
    identity: Annotated[str, typer.Option(help="Trusted Sigstore identity, e.g. an e-mail address")] = "",
    issuer: Annotated[str, typer.Option(help="OIDC issuer of that identity")] = "",
) -> None:
    """Check that a version is whole, holds nothing but what a checkpoint may, and was signed by somebody trusted.

    Example: fedkd keys verify checkpoints/registry/versions/tiny-sd/v1 --key ~/.fedkd/signing.pub
    """
    if not (key or certificate or identity):
        fail("give at least one of --key FILE, --certificate FILE and --identity NAME --issuer URL")
    from fedkd.checkpoints import signing
    from fedkd.checkpoints.blobs import verify_folder
    from fedkd.checkpoints.contents import check_folder

    with guard():
        manifest = verify_folder(folder)
        check_folder(folder, manifest)
        roots = [path.expanduser() for path in certificate or []]
        trusted = [path.expanduser() for path in key or []]
        signing.verify(folder, signing.TrustPolicy(True, trusted, roots, identity, issuer))
        print(f"{manifest.reference}: whole, signed by {signing.signer_of(folder)}")
