"""A registry over HTTP, read-only: blobs with ranges, manifests, signatures and names, behind a bearer token."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from fedkd import __version__
from fedkd.serving.errors import EdgeFault, install_handlers
from fedkd.serving.gate import Gate
from fedkd.serving.tokens import token_book

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
BLOB = re.compile(r"blobs/sha256/([0-9a-f]{2})/(\1[0-9a-f]{62})")
TEXT = re.compile(rf"versions/{_NAME}/{_NAME}/(manifest\.json|model\.sig)|names/{_NAME}/{_NAME}")
LISTING = re.compile(rf"versions(/{_NAME})?|names(/{_NAME})?")
IMMUTABLE = "public, max-age=31536000, immutable"


class BlobResponse(FileResponse):
    """A file with ranges, in 1 MiB pieces."""

    chunk_size = 1 << 20


def create_registry_app(root: Path | str, token: str = "") -> FastAPI:
    """The service for the registry below `root`; `token` (if any) must come as a bearer token.

    GET and HEAD of /v1/registry/PATH for the registry's own paths: blobs/sha256/ab/DIGEST (ETag = digest),
    versions/NAME/VERSION/manifest.json and model.sig, names/NAME/ALIAS, and listings of versions and names.
    """
    folder = Path(root).resolve()
    app = FastAPI(title="fedkd registry", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    install_handlers(app)
    app.add_middleware(Gate, tokens=token_book(token), max_body_bytes=0)

    @app.api_route("/healthz", methods=["GET", "HEAD"])
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.api_route("/v1/registry/{path:path}", methods=["GET", "HEAD"])
    def content(path: str, request: Request) -> Response:
        blob = BLOB.fullmatch(path)
        wanted = request.headers.get("if-none-match", "")
        if LISTING.fullmatch(path):
            return _listing(folder / path)
        if not blob and not TEXT.fullmatch(path):
            raise EdgeFault(404, "no such path in a registry", code="not_found")
        found = folder / path
        if found.is_symlink() or not found.is_file() or not found.resolve().is_relative_to(folder):
            raise EdgeFault(404, f"the registry has no {path}", code="not_found")
        if blob:
            return _answer(blob[2], wanted, IMMUTABLE, path=found)
        data = found.read_bytes()
        return _answer(hashlib.sha256(data).hexdigest(), wanted, "no-cache", data=data, name=found.name)

    return app


def _answer(
    digest: str, wanted: str, cache: str, *, path: Path | None = None, data: bytes = b"", name: str = ""
) -> Response:
    """A blob's file or a small file's bytes, or 304 when the asker holds this content."""
    headers = {"ETag": f'"{digest}"', "Cache-Control": cache}
    if wanted == "*" or f'"{digest}"' in wanted:
        return Response(status_code=304, headers=headers)
    if path is not None:
        return BlobResponse(path, media_type="application/octet-stream", headers=headers)
    kind = "application/json" if name.endswith(".json") else "text/plain; charset=utf-8"
    return Response(data, headers=headers, media_type=kind)


def _listing(folder: Path) -> Response:
    inside = folder.iterdir() if folder.is_dir() else ()
    found = sorted(p.name for p in inside if re.fullmatch(_NAME, p.name) and p.suffix != ".part")
    body: dict[str, Any] = {"entries": found}
    return JSONResponse(body, headers={"Cache-Control": "no-cache"})
