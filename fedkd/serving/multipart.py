"""A body of multipart/form-data (RFC 7578), which OpenAI's clients send with a picture: its fields and files."""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser

from fedkd.serving.errors import EdgeFault

MAX_PARTS = 64
MAX_HEADER_BYTES, MAX_TEXT_BYTES = 4096, 65_536


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


def read_form(content_type: str, body: bytes) -> Form:
    """The fields of `body`, which is in memory and bounded already; EdgeFault 400 where it is no such form."""
    told = Message()
    told["Content-Type"] = content_type
    boundary = told.get_boundary() if told.get_content_type() == "multipart/form-data" else None
    if not boundary or len(boundary) > 200:
        raise _malformed("its Content-Type is not multipart/form-data with a boundary")
    mark = b"\r\n--" + boundary.encode("utf-8", "surrogateescape")
    pieces = (b"\r\n" + body).split(mark, MAX_PARTS + 1)
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise _malformed(f"it has no end, or more than {MAX_PARTS} parts")
    texts: dict[str, str] = {}
    files: list[tuple[str, bytes]] = []
    for piece in pieces[1:-1]:
        head, gap, content = piece.partition(b"\r\n\r\n")
        if not gap or len(head) > MAX_HEADER_BYTES or not head.startswith(b"\r\n"):
            raise _malformed("a part of it has no headers")
        headers = BytesParser().parsebytes(head[2:] + b"\r\n\r\n", headersonly=True)
        name = headers.get_param("name", header="content-disposition")
        if not isinstance(name, str) or not name:
            raise _malformed("a part of it has no name")
        if headers.get_filename() is not None:
            files.append((name.removesuffix("[]"), content))
        elif len(content) > MAX_TEXT_BYTES:
            raise _malformed(f"{name[:60]} has {len(content):,} bytes of text")
        else:
            try:
                texts[name] = content.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _malformed(f"{name[:60]} is no text; send a picture as a file") from error
    return Form(texts, files)


def _malformed(why: str) -> EdgeFault:
    return EdgeFault(400, f"the form cannot be read: {why}", code="malformed_form")
