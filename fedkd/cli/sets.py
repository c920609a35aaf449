"""`fedkd sets serve`: where an edge takes its users' synthetic sets, with federation.sets_route=edge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_PORT = 8767

sets = typer.Typer(
    help="Take synthetic sets from users, past the cloud.\n\nExample: fedkd sets serve /var/lib/fedkd/sets --tokens "
    "users.yaml",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@sets.callback()
def verbs() -> None:
    """Take synthetic sets from users, past the cloud."""


@sets.command("serve")
def serve(
    spool: Annotated[str, typer.Argument(help="Folder for the sets: the one that the edge's node-config names.")],
    tokens: Annotated[
        str, typer.Option(metavar="FILE", help="YAML with each user's token: tokens: [{name, token or sha256}]")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = DEFAULT_PORT,
    max_mb: Annotated[float, typer.Option(min=0.001, help="A set of more MiB is refused.")] = 256.0,
) -> None:
    """Take sets for recipes with federation.sets_route=edge: a token's name is the user whose sets it may put here.

    Beside it runs the edge's SuperNode, with spool="SPOOL" in its node-config. Put a proxy with TLS before it where
    users come over a network: docs/deploy.md. Ctrl-C ends it.

    Example: fedkd sets serve /var/lib/fedkd/sets --tokens /etc/fedkd/users.yaml
    """
    from fedkd.cli.console import guard
    from fedkd.cli.listening import listen, run, url_of

    with guard("sets are no longer taken; run the same command to go on"), listen(host, port) as listener:
        from fedkd.serving.sets_http import create_sets_app, users_book

        folder = Path(spool).expanduser().resolve()
        app = create_sets_app(folder, users_book(tokens), int(max_mb * 2**20))
        print(f"taking sets into {folder} at {url_of(listener)} (Ctrl-C ends)", flush=True)
        run(app, listener, "the service for sets")
