"""TIFF directories: tags with their values as they stand in a file. EXIF is one, and so is each page of a TIFF.

Values are never decoded to be written again, so that every charset and every unknown tag comes through unchanged.
"""

import io
import struct
from dataclasses import dataclass, field
from typing import IO

import numpy as np

from ..diffusion.reading import tiff_directories

EXIF, GPS, INTEROP = 0x8769, 0x8825, 0xA005
_CHILDREN = (EXIF, GPS, INTEROP)
_USER_COMMENT = 0x9286
_MOST_BYTES, _MOST_TAGS = 2**26, 4096
# Bytes of one number of each type (TIFF 6.0, BigTIFF, EXIF 3.0); a rational is two numbers
_UNITS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 1, 7: 1, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4}
_UNITS |= {16: 8, 17: 8, 18: 8, 129: 1}
_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 16: "Q", 17: "q"}
_RATIONALS = {5: "I", 10: "i"}
_UTF8 = 129


@dataclass
class Directory:
    """Tags of a directory: ``{code: (TIFF type, little-endian value)}``, and the directories that it points to."""

    tags: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    children: dict[int, "Directory"] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.tags) or any(self.children.values())

    def text(self, code: int) -> str:
        """A tag of text, empty if there is none: UTF-8, as programs write it where EXIF asks for ASCII, or Latin-1."""
        kind, value = self.tags.get(code, (2, b""))
        return decode_text(value.split(b"\0")[0]).strip() if kind in (1, 2, 7, _UTF8) else ""

    def numbers(self, code: int) -> tuple[float, ...]:
        """A tag of numbers, empty if there is none."""
        kind, value = self.tags.get(code, (0, b""))
        if kind in _RATIONALS:
            pairs = struct.iter_unpack(f"<2{_RATIONALS[kind]}", value)
            return tuple(above / below if below else 0.0 for above, below in pairs)
        return tuple(number for (number,) in struct.iter_unpack(f"<{_CODES[kind]}", value)) if kind in _CODES else ()

    def put(self, code: int, kind: int, *numbers: int) -> None:
        self.tags[code] = (kind, struct.pack(f"<{len(numbers)}{_CODES.get(kind) or _RATIONALS[kind]}", *numbers))


def decode_text(value: bytes, *encodings: str) -> str:
    """Text in the first of these encodings that fits, UTF-8 and Latin-1 (as Windows knows it) at last."""
    for encoding in (*encodings, "utf-8", "cp1252"):
        try:
            return value.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
    return value.decode("latin-1")


def read_block(block: bytes) -> Directory:
    """The first directory of an EXIF block. Raises ``ValueError`` or ``struct.error`` for a damaged one."""
    block = block.removeprefix(b"Exif\0\0")
    stream = io.BytesIO(block)
    for offset, order, big in tiff_directories(stream):
        return read_directory(stream, offset, order, big=big)
    return Directory()


def read_directory(stream: IO[bytes], offset: int, order: str, *, big: bool = False, depth: int = 0) -> Directory:
    """A directory and those of EXIF, GPS and interoperability that it points to; damaged entries are left out."""
    found = Directory()
    stream.seek(offset)
    count, size, inline = (8, 20, 8) if big else (2, 12, 4)
    (length,) = struct.unpack(order + ("Q" if big else "H"), stream.read(count))
    table = stream.read(size * min(length, _MOST_TAGS))
    for position in range(0, len(table) - size + 1, size):
        code, kind, count = struct.unpack_from(order + ("HHQ" if big else "HHI"), table, position)
        length = count * _UNITS.get(kind, 0) * (2 if kind in _RATIONALS else 1)
        if not 0 < length <= _MOST_BYTES:
            continue
        value = table[position + size - inline : position + size][:length]
        if length > inline:
            value = _read_at(stream, int.from_bytes(value, "little" if order == "<" else "big"), length)
        if len(value) < length:
            continue
        value = value if order == "<" else _swap(value, _UNITS[kind])
        if code in _CHILDREN and depth < 2:
            pointer = int.from_bytes(value, "little")
            try:
                found.children[code] = read_directory(stream, pointer, order, big=big, depth=depth + 1)
            except (struct.error, ValueError, OSError):  # it points to nowhere
                continue
        else:
            found.tags[code] = (kind, value)
    if order == ">" and (comment := found.tags.get(_USER_COMMENT, (7, b""))[1]).startswith(b"UNICODE\0"):
        found.tags[_USER_COMMENT] = (7, comment[:8] + _swap(comment[8:], 2))  # its UTF-16 follows the byte order
    return found


def pack_block(directory: Directory) -> bytes:
    """A directory as an EXIF block, little-endian."""
    return b"II*\0\x08\0\0\0" + pack_directory(directory, 8)


def pack_directory(directory: Directory, position: int, *, big: bool = False) -> bytes:
    """A directory, little-endian, as it is to stand at ``position`` of its file, its children behind it."""
    pointer, inline = ("<Q", 8) if big else ("<I", 4)
    count = len(directory.tags) + len(directory.children)
    head = struct.pack("<Q" if big else "<H", count)
    entries: list[bytes] = []
    tail = b""
    after = position + len(head) + count * (20 if big else 12) + inline
    for code in sorted({*directory.tags, *directory.children}):
        if code in directory.children:
            kind, value = 4, struct.pack("<I", after + len(tail))
            tail += pack_directory(directory.children[code], after + len(tail), big=big)
        else:
            kind, value = directory.tags[code]
        numbers = len(value) // (_UNITS[kind] * (2 if kind in _RATIONALS else 1))
        if len(value) > inline:
            place = struct.pack(pointer, after + len(tail))
            tail += value
        else:
            place = value.ljust(inline, b"\0")
        tail += b"\0" * (len(tail) % 2)
        kind = 2 if kind == _UTF8 else kind
        entries.append(struct.pack("<HHQ" if big else "<HHI", code, kind, numbers) + place)
    return head + b"".join(entries) + bytes(inline) + tail


def _read_at(stream: IO[bytes], position: int, length: int) -> bytes:
    try:
        stream.seek(position)
    except (ValueError, OSError):  # a damaged pointer, beyond what a file can be
        return b""
    return stream.read(length)


def _swap(value: bytes, unit: int) -> bytes:
    whole = len(value) - len(value) % unit
    return np.frombuffer(value[:whole], f">u{unit}").astype(f"<u{unit}").tobytes() + value[whole:]
