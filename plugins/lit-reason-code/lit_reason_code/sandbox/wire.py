"""Values as they travel out of a confined process: data, and nothing but data.

A value becomes a tree that JSON can spell; what JSON lacks is an object with one key, the kind: `{"tuple": [1, 2]}`.
Whatever a program does to its own interpreter, all it can send is such a tree. Of kinds unknown here only the name of
the type arrives, which equals nothing.
"""

from __future__ import annotations

import json
import os
import struct
from typing import Any

_PLAIN_INTEGERS = 2**63  # larger ones are spelled in base 16, which takes linear time to read
LARGEST_FRAME = 64 * 2**20
_HEADER = struct.Struct("=I")


class Opaque:
    """Stands for a value that cannot travel; equal to itself only.

    Args:
        kind: name of the value's type.
    """

    def __init__(self, kind: str) -> None:
        self.__kind = kind  # mangled, so that no test finds an attribute that the value may not have


def encode(value: Any) -> Any:  # noqa: ANN401, PLR0911 - any value; one return for each kind
    """The tree of a value. Of a subclass of a plain type the plain value is taken: of a Counter, a dict."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        return int(value) if -_PLAIN_INTEGERS < value < _PLAIN_INTEGERS else {"int": hex(value)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple | set | frozenset):
        kind = "tuple" if isinstance(value, tuple) else "set"
        return {kind: [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value).hex()}
    return {"other": type(value).__name__}


def decode(tree: Any) -> Any:  # noqa: ANN401, PLR0911 - see `encode`
    """The value of a tree, made of plain types; to be called where hash collisions hurt nobody else.

    Raises:
        ValueError, TypeError, KeyError: `encode` does not write such a tree.
    """
    if isinstance(tree, list):
        return [decode(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    match kind:
        case "int":
            return int(content, 16)
        case "tuple":
            return tuple(decode(item) for item in content)
        case "set":
            return {decode(item) for item in content}
        case "dict":
            return {decode(key): decode(item) for key, item in content}
        case "complex":
            return complex(*content)
        case "bytes":
            return bytes.fromhex(content)
        case "other":
            return Opaque(content)
    raise ValueError(f"no kind '{kind}'")


def frame(tree: Any) -> bytes:  # noqa: ANN401 - see `encode`
    """A tree as bytes, their number first."""
    body = json.dumps(tree, separators=(",", ":")).encode()
    return _HEADER.pack(len(body)) + body


def frames(data: bytes) -> list[Any]:
    """The trees in a stream of frames; what comes after the last that is whole and sound is left out."""
    found, start = [], 0
    while start + _HEADER.size <= len(data):
        (size,) = _HEADER.unpack_from(data, start)
        start += _HEADER.size
        if start + size > len(data):
            break
        try:
            found.append(json.loads(data[start : start + size]))
        except (ValueError, RecursionError):
            break
        start += size
    return found


def read_frame(descriptor: int) -> Any:  # noqa: ANN401 - see `encode`
    """The next tree from a pipe or file.

    Raises:
        EOFError: it has ended.
        ValueError: what came is no frame.
    """
    (size,) = _HEADER.unpack(_read_exactly(descriptor, _HEADER.size))
    if size > LARGEST_FRAME:
        raise ValueError(f"a frame of {size} bytes")
    return json.loads(_read_exactly(descriptor, size))


def write(descriptor: int, data: bytes) -> None:
    """Write all of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def read_all(descriptor: int) -> bytes:
    """Read to the end, and close."""
    pieces = []
    while piece := os.read(descriptor, 2**20):
        pieces.append(piece)
    os.close(descriptor)
    return b"".join(pieces)


def _read_exactly(descriptor: int, size: int) -> bytes:
    pieces = []
    while size:
        piece = os.read(descriptor, min(size, 2**20))
        if not piece:
            raise EOFError
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
