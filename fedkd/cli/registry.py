"""`fedkd registry serve`: a registry over HTTP, read-only, for edges without shared storage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_PORT = 8766

registry = typer.Typer(
    help="Offer a registry of checkpoints to other machines.\n\nExample: fedkd registry serve checkpoints/registry",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@registry.callback()
def verbs() -> None:
    """Offer a registry of checkpoints to other machines."""


@registry.command("serve")
def serve(
    root: Annotated[str, typer.Argument(help="The registry's folder.")] = "checkpoints/registry",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = DEFAULT_PORT,
    token: Annotated[str, typer.Option(envvar="FEDKD_TOKEN", help="Bearer token that clients must send.")] = "",
) -> None:
    """Serve manifests, signatures and blobs read-only, for `fedkd pull --from http://HOST:PORT`. Ctrl-C ends it.

    Example: FEDKD_TOKEN=secret fedkd registry serve checkpoints/registry --host 0.0.0.0
    """
    from fedkd.cli.console import fail, guard
    from fedkd.cli.listening import listen, run, url_of

    with guard("the registry is no longer served; run the same command to serve it again"):
        folder = Path(root).expanduser().resolve()
        if not (folder / "versions").is_dir():
            fail(f"'{root}' is no registry: it has no folder 'versions'; give one that was published to")
        with listen(host, port) as listener:
            from fedkd.serving.registry_http import create_registry_app

            print(f"serving {folder} at {url_of(listener)} (Ctrl-C ends)", flush=True)
            run(create_registry_app(folder, token), listener, "the registry")
