"""The edge's letter box: users put their synthetic sets in over HTTP, and nobody gets any out again.

It is a service of its own: a node's ClientApp lives for one message and cannot listen, and `fedkd serve` knows the
tokens of devices, which have no business here. What it takes it does not parse: the edge's node checks a set before it
learns from it.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from fedkd import __version__
from fedkd.checkpoints.manifest import CheckpointError, check_name
from fedkd.serving.errors import EdgeFault, install_handlers
from fedkd.serving.gate import Gate
from fedkd.serving.spool import Spool
from fedkd.serving.tokens import TokenBook, TokenError, token_book

BODY_TIMEOUT_S = 600.0


def users_book(path: str) -> TokenBook:
    """The users' tokens from a file as `fedkd serve --tokens` takes it; TokenError when a name can be no user's."""
    book = token_book(path=path)
    for name in book.names:
        try:
            check_name(name)
        except CheckpointError as error:
            raise TokenError(
                f"tokens={path}: '{name}' can be no user's name; give the one in its node-config"
            ) from error
    return book


def create_sets_app(spool: Path | str, tokens: TokenBook, max_bytes: int) -> FastAPI:
    """The service for the spool folder; a token's name is the user whose sets it may put there, and no other's.

    PUT /v1/sets/USER/SHA256 with the Parquet bytes: 201, or 200 when the set was there already; 422 when the bytes have
    another digest, 413 when there are more than `max_bytes`, 403 for another user's token, 429 while a set of that user
    is coming in. GET of the same path says {"digest", "bytes"} of what is there, or 404; it gives no content away.
    TokenError without any token, since then everybody could write.
    """
    if not tokens:
        raise TokenError("no user has a token; write them to a file: tokens: [{name: ann, token: ...}]")
    place = Spool(spool)
    place.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.sweep()
    coming: set[str] = set()
    app = FastAPI(title="fedkd sets", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    install_handlers(app)
    app.add_middleware(Gate, tokens=tokens, max_body_bytes=max_bytes, body_timeout_s=BODY_TIMEOUT_S)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/sets/{user}/{digest}")
    def there(user: str, digest: str, request: Request) -> dict[str, Any]:
        path = _own(place, user, digest, request)
        if not path.is_file():
            raise EdgeFault(404, "no such set of this user", code="not_found")
        return {"digest": digest, "bytes": path.stat().st_size}

    @app.put("/v1/sets/{user}/{digest}")
    async def put(user: str, digest: str, request: Request) -> Response:
        path = _own(place, user, digest, request)
        if path.is_file():
            return JSONResponse({"digest": digest, "bytes": path.stat().st_size})
        with _alone(coming, user):
            size = await _receive(request, path, digest)
        place.prune(user)
        return JSONResponse({"digest": digest, "bytes": size}, 201)

    return app


def _own(place: Spool, user: str, digest: str, request: Request) -> Path:
    """The set's path; EdgeFault 403 when the token is another user's, whether or not there is such a set."""
    if request.scope["holder"] != user:
        raise EdgeFault(403, "this token is another user's", code="forbidden")
    try:
        return place.path(user, digest)
    except ValueError as error:
        raise EdgeFault(422, str(error), code="invalid_value") from error


@contextmanager
def _alone(coming: set[str], user: str) -> Iterator[None]:
    if user in coming:
        raise EdgeFault(429, "a set of this user is coming in; try again", code="too_many_requests")
    coming.add(user)
    try:
        yield
    finally:
        coming.discard(user)


async def _receive(request: Request, path: Path, digest: str) -> int:
    """Write the body to the path if it has the digest; its size in bytes."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    found, size = hashlib.sha256(), 0
    try:
        with part.open("wb") as stream:
            async for chunk in request.stream():
                found.update(chunk)
                size += len(chunk)
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        if found.hexdigest() != digest:
            raise EdgeFault(422, "the bytes have another sha256 than the path says", code="wrong_digest")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return size


def mounted(apps: Mapping[str, FastAPI]) -> FastAPI:
    """Several edges' services as one, each below its name: what a federation on one machine needs."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    for name, each in apps.items():
        app.mount(f"/{name}", each)
    return app
