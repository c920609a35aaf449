"""`fedkd serve`: an edge that draws whole pictures, and shares others with devices."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from fedkd.checkpoints.signing import TrustPolicy
    from fedkd.recipe import Recipe
    from fedkd.serving.sources import Source

DEFAULT_PORT = 8765


def serve(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or file: it says model and scheduler.")] = "quickstart",
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe.")
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]CHECKPOINT",
            help="A diffusers folder, a hub id, or NAME[:VERSION] from the recipe's registry, or from that of --from. "
            "May be given again: the first one is the default model. Default: the latest the recipe has published, "
            "else its base model.",
        ),
    ] = None,
    on_demand: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]CHECKPOINT",
            help="As --checkpoint, but fetched when it is first asked for here. May be given again.",
        ),
    ] = None,
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="URL",
            help="Registry to pull checkpoints from, into this edge's cache: a folder, s3://BUCKET/PATH, or "
            "http(s)://HOST[:PORT]. New latest versions are served as they appear there.",
        ),
    ] = "",
    source_token: Annotated[
        str, typer.Option("--from-token", envvar="FEDKD_REGISTRY_TOKEN", help="Bearer token for the registry.")
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
    tokens: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="YAML with more tokens and their limits: tokens: [{name, token or sha256, requests_per_minute, "
            "concurrent}]. Default: the recipe's.",
        ),
    ] = "",
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Another edge, which shares the work: requests go to whichever is best. May be given again; the same "
            "list will do for all edges. Default: the recipe's.",
        ),
    ] = None,
    peer_token: Annotated[
        str,
        typer.Option(
            envvar="FEDKD_PEER_TOKEN",
            help="What edges show each other where clients need tokens. Default: the recipe's.",
        ),
    ] = "",
    dispatch: Annotated[
        str,
        typer.Option(
            metavar="RULE",
            help="How an edge is chosen for a request: social, greedy, round-robin… Default: the recipe's.",
        ),
    ] = "",
    url: Annotated[
        str, typer.Option(help="Where other edges reach this one. Default: the recipe's, or where it listens.")
    ] = "",
    share: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Profile from `fedkd bench sharing`: requests whose prompts mean nearly the same share their first "
            "steps. Default: the recipe's, which is none.",
        ),
    ] = "",
    controlnet: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[KIND=]CONTROLNET",
            help="A shipped ControlNet's name, a folder or hub id, by which conditions of a KIND (canny, soft-edge, "
            "depth, seg) steer the models it was made for. May be given again, once a kind. Default: the recipe's.",
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="torch threads; 0 leaves the choice to torch.")] = 0,
) -> None:
    """Serve checkpoints from this machine as an edge.

    It answers the OpenAI client's `images.generate` (with a ControlNet `images.edit` too), and `fedkd generate` for
    split pictures. Ctrl-C ends it.

    Example, the shipped base model:

      fedkd serve quickstart --checkpoint tiny-sd --port 8765

    Example, pictures that follow the edges of another:

      fedkd serve quickstart --checkpoint tiny-sd --controlnet tiny-sd-canny

    Example, what the cloud has published, kept up to date:

      fedkd serve quickstart --from http://cloud.example:8766

    Example, one of two edges that share the work:

      fedkd serve quickstart --port 8001 --peer http://127.0.0.1:8001 --peer http://127.0.0.1:8002
    """
    from fedkd.cli.console import console, guard
    from fedkd.cli.listening import listen, run, url_of
    from fedkd.recipe import load_recipe

    with guard("the edge has stopped; run the same command to serve again"):
        resolved = load_recipe(recipe, overrides or [])
        port = port if port >= 0 else resolved.serving.port or DEFAULT_PORT
        with listen(host or resolved.serving.host, port) as listener:
            with console.status("loading the model"):
                import torch

                from fedkd.inference.allocator import keep_freed_memory
                from fedkd.serving.edge import create_app

                keep_freed_memory()
                if threads:
                    torch.set_num_threads(threads)
                found = _models(checkpoint or [""], resolved, source, source_token)
                settings = _settings(resolved)
                settings |= {"token": token or resolved.serving.token, "tokens": tokens or resolved.serving.tokens}
                settings |= {"url": url or resolved.serving.url or url_of(listener)}
                settings |= {"peers": _peers(peer or resolved.serving.peers)}
                settings |= {"peer_token": peer_token or resolved.serving.peer_token}
                settings |= {"dispatch": dispatch or resolved.serving.dispatch}
                settings |= {"share_profile": share or resolved.serving.share_profile}
                settings |= {"controlnets": controlnet or list(resolved.serving.controlnets)}
                lazy = _models(on_demand, resolved, source, source_token) if on_demand else {}
                app = create_app(models=found, on_demand=lazy, **settings)
            for served in app.state.edge.models.current():
                version = f":{served.version}" if served.version else ""
                print(
                    f"serving {served.name}{version} from {served.folder} at {url_of(listener)} (Ctrl-C ends)",
                    flush=True,
                )
            run(app, listener, "the edge")


def _settings(resolved: Recipe) -> dict[str, Any]:
    """What the recipe says of an edge, as settings of the service."""
    serving, model = resolved.serving, resolved.model
    return {
        "device": resolved.run.device,
        "dtype": resolved.run.dtype,
        "scheduler": model.scheduler,
        "num_inference_steps": model.num_inference_steps,
        "guidance_scale": model.guidance_scale,
        "requests_per_minute": serving.requests_per_minute,
        "concurrent": serving.concurrent_requests,
        "max_sessions": serving.max_sessions,
        "session_lifetime_s": serving.session_lifetime_s,
        "max_waiting": serving.max_waiting,
        "max_rows": serving.max_rows,
        "batch": serving.batch,
        "max_body_bytes": int(serving.max_body_mb * 2**20),
        "refresh_s": serving.refresh_s,
        "forward": serving.forward,
        "gossip_s": serving.gossip_s,
        "most_on_demand": serving.on_demand_models,
        "share_profile": serving.share_profile,
        "share_loss": serving.share_loss,
        "share_group": serving.share_group,
        "share_cache_bytes": int(serving.share_cache_mb * 2**20),
    }


def _peers(urls: list[str]) -> list[str]:
    """The URLs of other edges; a user's mistake for what is none."""
    from fedkd.recipe import RecipeError

    for url in urls:
        if not re.fullmatch(r"https?://[^/\s]+/?", url):
            raise RecipeError(f"--peer={url} is no edge's address; give http://HOST:PORT")
    return urls


def _models(wanted: list[str], resolved: Recipe, url: str, url_token: str) -> dict[str, Source]:
    """The sources to serve from, by name."""
    from fedkd.checkpoints.cache import CheckpointCache
    from fedkd.checkpoints.signing import TrustPolicy
    from fedkd.recipe import RecipeError, run_dir
    from fedkd.serving.sources import CloudSource

    serving = resolved.serving
    policy = TrustPolicy(serving.require_signature, [Path(key).expanduser() for key in serving.trusted_keys])
    cache = CheckpointCache(
        Path(serving.cache_dir).expanduser().resolve() if serving.cache_dir else run_dir(resolved) / "edge-cache",
        max_bytes=int(serving.cache_mb * 2**20),
        policy=policy,
    )
    found: dict[str, Source] = {}
    for each in wanted:
        named = re.fullmatch(r"([\w.-]+)=(.+)", each)
        given, checkpoint = (named[1], named[2]) if named else ("", each)
        if url:
            reference = checkpoint or resolved.model.name
            name, source = reference.partition(":")[0], cast("Source", CloudSource(url, reference, cache, url_token))
        else:
            name, source = _local(checkpoint, resolved, policy)
        name = given or name
        if name in found:
            raise RecipeError(f"--checkpoint={each}: two models are called '{name}'; give one as NAME={checkpoint}")
        found[name] = source
    return found


def _local(wanted: str, resolved: Recipe, policy: TrustPolicy) -> tuple[str, Source]:
    """The name to serve under, and the source, of a checkpoint on this machine or a hub's."""
    from fedkd.checkpoints.registry import Registry
    from fedkd.models.source import SHIPPED
    from fedkd.recipe import registry_dir
    from fedkd.serving.sources import FolderSource, RegistrySource

    root = registry_dir(resolved)
    published = Registry(root).names() if root.is_dir() else []
    if not wanted and resolved.model.name in published:  # also where a shipped model has that name
        return resolved.model.name, RegistrySource(Registry(root), resolved.model.name, policy)
    if not wanted:
        return resolved.model.name, FolderSource(resolved.model.path)
    name = wanted.partition(":")[0]
    if name in published and not (SHIPPED / wanted).is_dir() and not Path(wanted).exists():
        return name, RegistrySource(Registry(root), wanted, policy)
    return resolved.model.name, FolderSource(wanted)
