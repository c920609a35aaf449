"""A form (multipart/form-data), which OpenAI's clients send with a picture: its fields and files."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from fedkd.serving.errors import EdgeFault

MAX_FILES, MAX_TEXTS = 16, 64
MAX_TEXT_BYTES = 65_536


@dataclass(frozen=True)
class Form:
    """`texts` by name, the last of a name; `files` (name, content) in their order, 'image[]' as 'image'."""

    texts: dict[str, str]
    files: list[tuple[str, bytes]]

    def file(self, name: str) -> bytes | None:
        """The one file of this name, None where there is none; EdgeFault 400 for several."""
        found = [content for each, content in self.files if each == name]
        if len(found) > 1:
            raise EdgeFault(400, f"{len(found)} pictures were sent as {name}; give one", param=name,
                            code="too_many_images")  # fmt: skip
        return found[0] if found else None


async def read_form(request: Request) -> Form:
    """The fields of a request, whose body is bounded already; EdgeFault 400 where it is no such form."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise _malformed("its Content-Type is not multipart/form-data")
    body = await request.body()
    if not body.rstrip().endswith(b"--"):  # the parser would take what there is for all
        raise _malformed("it has no end")

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        request.headers, whole(), max_files=MAX_FILES, max_fields=MAX_TEXTS, max_part_size=MAX_TEXT_BYTES
    )
    parser.spool_max_size = len(body)  # it is in memory already
    try:
        found = await parser.parse()
    except (MultiPartException, ValueError) as error:  # ValueError: what python-multipart itself finds wrong
        raise _malformed(getattr(error, "message", str(error))) from error
    texts: dict[str, str] = {}
    files: list[tuple[str, bytes]] = []
    for name, value in found.multi_items():
        if isinstance(value, UploadFile):
            files.append((name.removesuffix("[]"), await value.read()))
        else:
            texts[name] = value
    await found.close()
    return Form(texts, files)


def _malformed(why: str) -> EdgeFault:
    return EdgeFault(400, f"the form cannot be read: {why}", code="malformed_form")
