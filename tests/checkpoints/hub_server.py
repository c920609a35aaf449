"""A small stand-in for the Hugging Face Hub's HTTP API on loopback: repositories, commits, large files, tags."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from fastapi import FastAPI, Request, Response

LARGE = (".safetensors",)


@dataclass
class HubState:
    """What the hub holds: per revision {path: bytes}, large contents by sha256, and the bytes it was sent."""

    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)  # paths touched
    uploaded: int = 0


def create_hub(state: HubState, base: list[str], token: str = "hf_test") -> FastAPI:
    """The hub as one repository `me/digits` sees it; `base[0]` is its own URL."""
    app = FastAPI()

    def refused(request: Request) -> bool:
        return request.headers.get("authorization") != f"Bearer {token}"

    def known(path: str, data: bytes) -> dict[str, Any]:
        git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        found: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git}
        if path.endswith(LARGE):
            digest = hashlib.sha256(data).hexdigest()
            found["lfs"] = {"oid": digest, "sha256": digest, "size": len(data), "pointerSize": 130}
        return found

    @app.post("/api/repos/create")
    async def create(request: Request) -> Response:
        if refused(request):
            return Response(json.dumps({"error": "no"}), 401)
        exists, url = bool(state.revisions), {"url": f"{base[0]}/me/digits"}
        state.revisions.setdefault("main", {})
        return Response(json.dumps(url), 409 if exists else 200)

    @app.post("/api/validate-yaml")
    async def validate(request: Request) -> dict[str, Any]:
        assert "library_name: diffusers" in (await request.json())["content"]
        return {"errors": [], "warnings": []}

    @app.post("/api/models/me/digits/paths-info/{revision}")
    async def paths_info(revision: str, request: Request) -> Response:
        files = state.revisions.get(revision)
        if files is None:
            return Response(json.dumps({"error": "x"}), 404, {"X-Error-Code": "RevisionNotFound"})
        wanted = (await request.body()).decode()
        asked = json.loads(wanted)["paths"] if wanted.startswith("{") else parse_qs(wanted)["paths"]
        return Response(json.dumps([known(path, files[path]) for path in asked if path in files]))

    @app.get("/api/models/me/digits/tree/{revision}")
    @app.get("/api/models/me/digits/tree/{revision}/{folder:path}")
    async def tree(revision: str, folder: str = "") -> Response:
        files, above = state.revisions.get(revision), f"{folder}/" if folder else ""
        if files is None:
            return Response(json.dumps({"error": "x"}), 404, {"X-Error-Code": "RevisionNotFound"})
        inside = {path.removeprefix(above): path for path in files if path.startswith(above)}
        found = [known(path, files[path]) for name, path in inside.items() if "/" not in name]
        folders = sorted({above + name.partition("/")[0] for name in inside if "/" in name})
        return Response(json.dumps(found + [{"type": "directory", "path": each, "oid": "0" * 40} for each in folders]))

    @app.post("/api/models/me/digits/preupload/{revision}")
    async def preupload(revision: str, request: Request) -> dict[str, Any]:
        files = (await request.json())["files"]
        kinds = {each["path"]: "lfs" if each["path"].endswith(LARGE) else "regular" for each in files}
        return {"files": [{"path": p, "uploadMode": kind, "shouldIgnore": False} for p, kind in kinds.items()]}

    @app.post("/me/digits.git/info/lfs/objects/batch")
    async def batch(request: Request) -> dict[str, Any]:
        objects = []
        for each in (await request.json())["objects"]:
            upload = {"upload": {"href": f"{base[0]}/upload/{each['oid']}", "header": {}}}
            objects.append(each | ({} if each["oid"] in state.large else {"actions": upload}))
        return {"transfer": "basic", "objects": objects}

    @app.put("/upload/{digest}")
    async def upload(digest: str, request: Request) -> dict[str, Any]:
        data = await request.body()
        assert hashlib.sha256(data).hexdigest() == digest
        state.large[digest] = data
        state.uploaded += len(data)
        return {}

    @app.post("/api/models/me/digits/commit/{revision}")
    async def commit(revision: str, request: Request) -> dict[str, Any]:
        files, touched = dict(state.revisions[revision]), []
        for line in (await request.body()).splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                state.uploaded += len(files[value["path"]])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = state.large[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
            touched += [value["path"]] if "path" in value else []
        state.revisions[revision] = files
        state.commits.append(touched)
        oid = f"{len(state.commits):040x}"
        return {"success": True, "commitOid": oid, "commitUrl": f"{base[0]}/me/digits/commit/{oid}"}

    @app.post("/api/models/me/digits/tag/{revision}")
    async def tag(revision: str, request: Request) -> dict[str, Any]:
        state.revisions[(await request.json())["tag"]] = dict(state.revisions[revision])
        return {}

    @app.get("/api/models/me/digits/refs")
    async def refs() -> dict[str, Any]:
        tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": "0" * 40} for name in state.revisions]
        return {"branches": [], "converts": [], "tags": [each for each in tags if each["name"] != "main"]}

    @app.get("/api/models/me/digits/revision/{revision}")
    @app.get("/api/models/me/digits")
    async def info(revision: str = "main") -> Response:
        if revision not in state.revisions:
            return Response(json.dumps({"error": "x"}), 404, {"X-Error-Code": "RevisionNotFound"})
        return Response(json.dumps({"id": "me/digits", "modelId": "me/digits", "sha": "0" * 40, "siblings": []}))

    @app.api_route("/me/digits/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    async def resolve(revision: str, path: str, request: Request) -> Response:
        data = state.revisions.get(revision, {}).get(path)
        if data is None:
            return Response(status_code=404, headers={"X-Error-Code": "EntryNotFound"})
        wanted = request.headers.get("range", "")
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": "0" * 40}
        if not wanted:
            return Response(data, headers=headers)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1 if last else None]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        return Response(part, 206, headers)

    return app
