"""`fedkd serve`: an edge that draws whole pictures, and shares others with devices."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_PORT = 8765


def serve(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or file: it says model and scheduler.")] = "quickstart",
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe.")
    ] = None,
    checkpoint: Annotated[
        str,
        typer.Option(
            help="A diffusers folder, a hub id, or NAME[:VERSION] from the recipe's registry. Default: the "
            "latest the recipe has published, else its base model."
        ),
    ] = "",
    host: Annotated[str, typer.Option(help="Address to listen on. Default: the recipe's.")] = "",
    port: Annotated[
        int,
        typer.Option(min=-1, max=65535, help="Port to listen on; 0 takes a free one. Default: the recipe's, or 8765."),
    ] = -1,
    token: Annotated[
        str,
        typer.Option(envvar="FEDKD_TOKEN", help="Bearer token that clients must send. Default: the recipe's."),
    ] = "",
    threads: Annotated[int, typer.Option(min=0, help="torch threads; 0 leaves the choice to torch.")] = 0,
) -> None:
    """Serve a checkpoint from this machine as an edge.

    It answers the OpenAI client's `images.generate`, and `fedkd generate` for split pictures. Ctrl-C ends it.

    Example, the shipped base model:

      fedkd serve quickstart --checkpoint tiny-sd --port 8765
    """
    from fedkd.cli.console import console, fail, guard
    from fedkd.recipe import load_recipe, with_sampling

    with guard("the edge has stopped; run the same command to serve again"):
        resolved = load_recipe(recipe, overrides or [])
        host = host or resolved.serving.host
        port = port if port >= 0 else resolved.serving.port or DEFAULT_PORT
        listener = _listen(host, port)
        with listener:
            with console.status("loading the model"):
                import torch
                import uvicorn

                from fedkd.serving.edge import create_app

                if threads:
                    torch.set_num_threads(threads)
                source, name = _find_checkpoint(checkpoint, resolved)
                resolved = with_sampling(resolved, _sampling(Path(source)))
                app = create_app(
                    source,
                    device=resolved.run.device,
                    dtype=resolved.run.dtype,
                    name=name,
                    token=token or resolved.serving.token,
                    scheduler=resolved.model.scheduler,
                    num_inference_steps=resolved.model.num_inference_steps,
                    guidance_scale=resolved.model.guidance_scale,
                )
            address, taken = listener.getsockname()[:2]
            shown = f"[{address}]" if ":" in address else address
            print(f"serving {name} from {source} at http://{shown}:{taken} (Ctrl-C ends)", flush=True)
            config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
            server = uvicorn.Server(config)
            server.run(sockets=[listener])
            if not server.started:
                fail(f"the edge could not start at http://{shown}:{taken}; see the lines above")


def _listen(host: str, port: int) -> socket.socket:
    from fedkd.cli.console import fail

    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except OSError:
            listener.close()
            raise
        return listener
    except OSError as error:
        fail(f"cannot listen on {host}:{port}: {error.strerror}; give another --port, or 0 for a free one")


def _sampling(folder: Path) -> dict[str, Any]:
    """How a published few-step checkpoint is drawn, from its manifest; {} for any other model."""
    from fedkd.checkpoints.manifest import MANIFEST_NAME, Manifest

    path = folder / MANIFEST_NAME
    return Manifest.from_json(path.read_text("utf-8")).sampling if path.is_file() else {}


def _find_checkpoint(wanted: str, resolved: object) -> tuple[str, str]:
    """The folder or hub id to serve, and the name to serve it under."""
    from fedkd.checkpoints.registry import Registry
    from fedkd.models.pipeline import SHIPPED
    from fedkd.recipe import Recipe, registry_dir

    assert isinstance(resolved, Recipe)
    root = registry_dir(resolved)
    published = Registry(root).names() if root.is_dir() else []
    if not wanted and resolved.model.name in published:
        wanted = f"{resolved.model.name}:latest"
    if not wanted:
        return resolved.model.path, resolved.model.name
    name = wanted.partition(":")[0]
    shipped = (SHIPPED / wanted).is_dir()
    if name in published and not shipped and not Path(wanted).exists():
        return str(Registry(root).resolve(wanted)), name
    return wanted, resolved.model.name
