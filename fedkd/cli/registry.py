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
    from fedkd.cli.serve import _listen

    with guard("the registry is no longer served; run the same command to serve it again"):
        folder = Path(root).expanduser().resolve()
        if not (folder / "versions").is_dir():
            fail(f"'{root}' is no registry: it has no folder 'versions'; give one that was published to")
        with _listen(host, port) as listener:
            import uvicorn

            from fedkd.serving.registry_http import create_registry_app

            address, taken = listener.getsockname()[:2]
            shown = f"[{address}]" if ":" in address else address
            print(f"serving {folder} at http://{shown}:{taken} (Ctrl-C ends)", flush=True)
            config = uvicorn.Config(
                create_registry_app(folder, token), log_level="warning", timeout_graceful_shutdown=5
            )
            server = uvicorn.Server(config)
            server.run(sockets=[listener])
            if not server.started:
                fail(f"the registry could not be served at http://{shown}:{taken}; see the lines above")
