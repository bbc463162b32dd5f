"""Reads ``.conda`` files that nobody vouches for: in constant memory, and only those that all readers take alike.

A ``.conda`` file is a zip of ``metadata.json`` and two compressed tars, ``info-*`` and ``pkg-*``. Each of these formats says
some things twice, or lets some things be said that few readers know. A zip has its names beside the members and in the
directory at the end. A Zstandard stream may go on after its first frame, and a tar may say a size in two headers. One reader
then takes what another never saw. So this one takes only what the tools write that make packages (conda-build, rattler-build,
ours), byte after byte with nothing in between, and everything else is an error.

Of packages of the older format, ``.tar.bz2``, it reads the members of the tar in the same way.

Formats: PKWARE's APPNOTE 6.3.10; RFC 8878 (Zstandard); POSIX.1-2017 ``pax``, and GNU tar's long names.
"""

from __future__ import annotations

import bz2
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BLOCK = 1 << 20
"""Bytes that are in memory at once of what is unpacked."""
LARGEST_PACKED = (1 << 32) - 2
"""Bytes of a ``.conda`` file; a larger zip has an end of another kind."""
_PACKED_BLOCK = 1 << 17
_WINDOW = 27
"""Binary logarithm of how far back a frame may refer, in bytes (128 MiB): what zstd's highest level uses."""
_ZSTD, _BZIP2 = b"\x28\xb5\x2f\xfd", b"BZh"

_MEMBERS = 3
_LOCAL_MARK, _CENTRAL_MARK, _END_MARK = b"PK\3\4", b"PK\1\2", b"PK\5\6"
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_WIDE = struct.Struct("<2H2Q")
_UTF8_NAMES = 0x800
_NEWEST_ZIP = 45
_IN_WIDE = 0xFFFFFFFF

_HEADER = 512
_LONGEST_HEADER_TEXT = 4096
_LONGEST_PATH, _LONGEST_NAME = 1024, 255
_LONGEST_PADDING, _LONGEST_END = 1 << 20, 2 << 20
_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
_POSIX, _GNU = b"ustar\x0000", b"ustar  \0"
_KINDS = {b"0": "file", b"\0": "file", b"1": "hard link", b"2": "link", b"5": "folder"}
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,4}) ([A-Za-z]+)=")
_SECONDS = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?")
# anything else is about content (size, sparse files) or is taken by some readers alone (extended attributes, charsets)
_PAX = {"path", "linkpath", "mtime", "atime", "ctime", "uid", "gid", "uname", "gname"}
_UNUSABLE = re.compile("[\0-\x1f\x7f-\x9f\\\\\u2028\u2029]")


@dataclass(frozen=True)
class ArchivePart:
    """A member of the zip: ``size`` bytes from ``start`` on, with the CRC-32 ``checksum``; None where nothing says it."""

    start: int
    size: int
    checksum: int | None


@dataclass(frozen=True)
class Member:
    """An entry of a tar.

    Attributes:
        path: with slashes, none at its ends, no ``.`` or ``..`` in between.
        kind: ``file``, ``link`` (a symbolic one), ``hard link`` or ``folder``.
        size: of a file, in bytes.
        target: where a link leads; of a hard link the path of another member.
        executable: whether a file, or what a hard link leads to, can be run.
    """

    path: str
    kind: str
    size: int = 0
    target: str = ""
    executable: bool = False


def parts(file: IO[bytes], size: int) -> dict[str, ArchivePart]:
    """The members of the zip, by name.

    Args:
        size: of the file, in bytes.

    Raises:
        ValueError: it is not a zip of three members that are stored one after the other, with nothing in between.
    """
    if size > LARGEST_PACKED:
        raise ValueError("it is larger than 4 GiB")
    found: list[_Stored] = []
    position = 0
    while _at(file, position, 4) == _LOCAL_MARK and len(found) <= _MEMBERS:
        found.append(_stored(file, position))
        position = found[-1].part.start + found[-1].part.size
    directory = position
    for one in found:
        position = _check_directory(file, position, one)
    count = len(found)
    end = (_END_MARK, 0, 0, count, count, position - directory, directory, 0)
    if _END.unpack(_at(file, position, _END.size)) != end or position + _END.size != size:
        raise ValueError("the zip is cut off, or holds more than its members")
    if len({one.name for one in found}) != _MEMBERS or count != _MEMBERS:
        raise ValueError(f"it should have three members, and has {', '.join(shown(one.name) for one in found) or 'none'}")
    return {one.name: one.part for one in found}


def read(file: IO[bytes], part: ArchivePart, largest: int) -> bytes:
    """A member of the zip that is not compressed.

    Raises:
        ValueError: it is larger than ``largest`` bytes, or damaged.
    """
    if part.size > largest:
        raise ValueError(f"a member that should be small has {part.size:,} bytes")
    data = _at(file, part.start, part.size)
    if zlib.crc32(data) != part.checksum:
        raise ValueError("it was altered: a checksum is wrong")
    return data


def members(file: IO[bytes], part: ArchivePart, largest: int, strict: bool = True) -> Iterator[tuple[Member, Iterator[bytes]]]:
    """The entries of a compressed tar, each with its content in blocks of at most ``BLOCK`` bytes.

    What is not read of a content when the next entry is asked for is skipped. Paths may come twice: that is for the caller.

    Args:
        largest: how many bytes the tar may have when it is unpacked.
        strict: off, an entry may have any name, mode, owner and target, and the last two are not in the answer. What is said
            about the kinds and sizes of entries is the same to every reader in either case.

    Raises:
        ValueError: it is damaged, larger, or has an entry that some readers refuse or take otherwise than others.
    """
    decoder = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW})
    yield from _members(_Unpacked(file, part, largest, decoder, _ZSTD), strict)


def bzip2_members(file: IO[bytes], size: int, largest: int, strict: bool = True) -> Iterator[tuple[Member, Iterator[bytes]]]:
    """As ``members``, of a ``.tar.bz2`` of ``size`` bytes, which is one compressed stream."""
    yield from _members(_Unpacked(file, ArchivePart(0, size, None), largest, bz2.BZ2Decompressor(), _BZIP2), strict)


def _members(tar: _Unpacked, strict: bool) -> Iterator[tuple[Member, Iterator[bytes]]]:
    while (member := _next(tar, strict)) is not None:
        content = _content(tar, member.size)
        yield member, content
        for _ in content:
            pass
        tar.skip_zeros(-member.size % _HEADER)
    tar.finish()


@dataclass(frozen=True)
class _Stored:
    """A member as the header in front of it describes it; ``said`` is what the directory must repeat."""

    name: str
    offset: int
    part: ArchivePart
    said: tuple[int, ...]


def _stored(file: IO[bytes], offset: int) -> _Stored:
    _, needed, flags, method, time, date, checksum, packed, size, name_size, extra_size = _LOCAL.unpack(
        _at(file, offset, _LOCAL.size)
    )
    text = _at(file, offset + _LOCAL.size, name_size + extra_size)
    # not encrypted, no sizes behind the data, not compressed: a reader that goes through the headers alone finds its way
    if flags & ~_UTF8_NAMES or method or needed > _NEWEST_ZIP:
        raise ValueError("a member of the zip is compressed, encrypted or stored in another way than in packages")
    size = _size(packed, size, text[name_size:])
    part = ArchivePart(offset + _LOCAL.size + len(text), size, checksum)
    # other names than the three of ASCII letters are refused by whoever asked
    return _Stored(text[:name_size].decode("latin-1"), offset, part, (needed, flags, method, time, date))


def _check_directory(file: IO[bytes], position: int, one: _Stored) -> int:
    """Compare an entry of the directory with the header of the member; return where the next entry begins."""
    mark, _, *said, checksum, packed, size, name_size, extra_size, note_size, disk, _, attributes, offset = _CENTRAL.unpack(
        _at(file, position, _CENTRAL.size)
    )
    text = _at(file, position + _CENTRAL.size, name_size + extra_size)
    found = (mark, tuple(said), checksum, text[:name_size], _size(packed, size, text[name_size:]), offset, note_size, disk)
    same = (_CENTRAL_MARK, one.said, one.part.checksum, one.name.encode("latin-1"), one.part.size, one.offset, 0, 0)
    kind = attributes >> 16 & 0o170000
    if found != same or kind not in (0, 0o100000) or attributes & 0x10:
        raise ValueError("the zip's directory is damaged, or says something else than its members")
    return position + _CENTRAL.size + len(text)


def _size(packed: int, size: int, extra: bytes) -> int:
    """Of a member that is stored as it is, in bytes. Writers that do not know it beforehand keep it in a field of 64 bits."""
    if extra:
        if len(extra) != _WIDE.size or (packed, size) != (_IN_WIDE, _IN_WIDE):
            raise ValueError("a member of the zip has a note that not all readers understand")
        kind, length, size, packed = _WIDE.unpack(extra)
        if (kind, length) != (1, _WIDE.size - 4):
            raise ValueError("a member of the zip has a note that not all readers understand")
    if packed != size or size > LARGEST_PACKED:
        raise ValueError("a member of the zip has two sizes")
    return size


def _at(file: IO[bytes], position: int, size: int) -> bytes:
    file.seek(position)
    data = file.read(size)
    if len(data) != size:
        raise ValueError("it is cut off")
    return data


class _Unpacked:
    """What compressed data expands to, read once from its start to its end."""

    def __init__(
        self, file: IO[bytes], part: ArchivePart, largest: int, decoder: zstd.ZstdDecompressor | bz2.BZ2Decompressor, mark: bytes
    ) -> None:
        self._file, self._packed, self._expected = file, part.size, part.checksum
        self._checksum = 0
        self._left = largest
        self._ready = memoryview(b"")
        self._decoder = decoder
        self._format = "bzip2 stream" if mark == _BZIP2 else "Zstandard frame"
        # readers differ in what else they take: frames to be skipped, frames of the first versions
        if _at(file, part.start, min(len(mark), part.size)) != mark:
            raise ValueError(f"a member does not begin with a {self._format}")
        file.seek(part.start)

    def read(self, size: int) -> bytes:
        """The next bytes, exactly so many."""
        block = self.some(size)
        while len(block) < size:
            more = self.some(size - len(block))
            if not more:
                raise ValueError("a tar in it is cut off")
            block += more
        return block

    def some(self, size: int) -> bytes:
        """Up to ``size`` of the next bytes; none at the end."""
        while not self._ready:
            if self._decoder.eof:
                return b""
            self._ready = memoryview(self._unpack())
        block, self._ready = bytes(self._ready[:size]), self._ready[size:]
        return block

    def skip_zeros(self, size: int) -> None:
        if any(self.read(size)):
            raise ValueError("a tar in it holds something between its members")

    def finish(self) -> None:
        """Check that nothing but the zeros of a tar's end is left, and that the compressed data ends with the member."""
        self._left = min(self._left, _LONGEST_END)
        # the first of the two empty headers was read
        padding = self.read(_HEADER)
        while True:
            if any(padding):
                raise ValueError("a tar in it goes on after its end")
            if not (padding := self.some(_LONGEST_PADDING)):
                break
        if self._packed or self._decoder.unused_data:
            raise ValueError(f"a member goes on after its {self._format}")
        if self._expected not in (None, self._checksum):
            raise ValueError("it was altered: a checksum is wrong")

    def _unpack(self) -> bytes:
        packed = b""
        if self._decoder.needs_input:
            packed = self._file.read(min(self._packed, _PACKED_BLOCK))
            if not packed:
                raise ValueError(f"a {self._format} in it is cut off")
            self._packed -= len(packed)
            self._checksum = zlib.crc32(packed, self._checksum)
        try:
            data = self._decoder.decompress(packed, BLOCK)
        # the second is bzip2's, which has none of its own
        except (zstd.ZstdError, OSError) as error:
            raise ValueError(f"its compressed data is damaged: {error}") from None
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("it unpacks to more than it says, or than is allowed")
        return data


def _content(tar: _Unpacked, size: int) -> Iterator[bytes]:
    while size:
        block = tar.some(min(size, BLOCK))
        if not block:
            raise ValueError("a tar in it is cut off")
        size -= len(block)
        yield block


def _next(tar: _Unpacked, strict: bool) -> Member | None:
    """The next entry with what the headers in front of it say about it; None at the end."""
    said: dict[str, str] = {}
    extended: list[bytes] = []
    while True:
        header = tar.read(_HEADER)
        if not any(header):
            if extended:
                raise ValueError("a tar in it ends after a header without a member")
            return None
        _check_header(header, strict)
        kind, size = header[156:157], _number(header[124:136])
        if kind not in (b"L", b"K", b"x"):
            return _member(header, _KINDS.get(kind, ""), size, said, strict)
        # the two ways of saying a long name are not mixed, and neither says it twice
        if kind in extended or (extended and b"x" in (kind, extended[0])):
            raise ValueError("a tar in it has two headers for one member")
        extended.append(kind)
        if size > _LONGEST_HEADER_TEXT:
            raise ValueError("a tar in it has a name that is too long")
        data = tar.read(size)
        tar.skip_zeros(-size % _HEADER)
        key = "path" if kind == b"L" else "linkpath"
        said |= _pax(data) if kind == b"x" else {key: _decoded(data.removesuffix(b"\0"), strict)}


def _check_header(header: bytes, strict: bool) -> None:
    if sum(header) - sum(header[148:156]) + 8 * ord(" ") != _number(header[148:156]):
        raise ValueError("a tar in it has a damaged header")
    # readers differ in what they make of a field that is no number, be it one that they do not need
    for start, end in ((100, 108), (108, 116), (116, 124), (136, 148)):
        # in other forms, some builders write owners with large numbers
        if strict or not 108 <= start < 124:
            _number(header[start:end])
    for start, end in ((329, 337), (337, 345)):
        if any(header[start:end]):
            _number(header[start:end])
    # where the one format has the start of a name, the other has times
    spare = {_POSIX: header[500:], _GNU: header[345:]}.get(header[257:265])
    if spare is None or any(spare):
        raise ValueError("a tar in it is of a format that packages do not have")


def _member(header: bytes, kind: str, size: int, said: dict[str, str], strict: bool) -> Member:
    name, target = _text(header[:100], strict), _text(header[157:257], strict)
    if header[257:265] == _POSIX and (start := _text(header[345:500], strict)):
        name = f"{start}/{name}"
    path = said.get("path", name)
    if not kind:
        raise ValueError(f"{shown(path)} in it is neither a file nor a link nor a folder")
    if size and kind != "file":
        raise ValueError(f"{shown(path)} in it is a {kind}, and has content")
    if not strict:
        return Member(path, kind, size)
    path = clean_path(path.removesuffix("/") if kind == "folder" else path)
    mode = _number(header[100:108])
    if kind in ("link", "hard link"):
        target = said.get("linkpath", target)
        if kind == "hard link":
            target = clean_path(target)
        elif not 0 < len(target.encode()) <= _LONGEST_PATH or _UNUSABLE.search(target):
            raise ValueError(f"{shown(path)} in it leads to {shown(target)}")
    elif "linkpath" in said:
        raise ValueError(f"{shown(path)} in it is no link, and leads to {shown(said['linkpath'])}")
    else:
        target = ""
    # what a plain user must be able to do with it; and nothing more than that
    if (kind == "file" and (mode & 0o7000 or not mode & 0o400)) or (kind == "folder" and mode & 0o700 != 0o700):
        raise ValueError(f"{shown(path)} in it has the mode {mode:o}")
    return Member(path, kind, size, target, kind in ("file", "hard link") and bool(mode & 0o111))


def _pax(data: bytes) -> dict[str, str]:
    said: dict[str, str] = {}
    while data:
        record = _PAX_RECORD.match(data)
        length = int(record[1]) if record else 0
        if record is None or record.end() >= length or length > len(data) or data[length - 1 : length] != b"\n":
            raise ValueError("a tar in it has a damaged header")
        key, value = record[2].decode(), _decoded(data[record.end() : length - 1])
        if key not in _PAX or key in said:
            raise ValueError(f"a tar in it says {shown(key)} of a member, or says it twice")
        if "\n" in value:
            # some readers look for the next line
            raise ValueError(f"a tar in it says {shown(key)}={shown(value)} of a member")
        if key in ("mtime", "atime", "ctime", "uid", "gid") and not _SECONDS.fullmatch(value):
            raise ValueError(f"a tar in it says {shown(key)}={shown(value)} of a member")
        said[key] = value
        data = data[length:]
    return said


def _number(field: bytes) -> int:
    if not (digits := _OCTAL.fullmatch(field)):
        raise ValueError("a tar in it has a damaged header")
    return int(digits[1], 8)


def _text(field: bytes, strict: bool) -> str:
    # after the first NUL some writers leave what was there before
    return _decoded(field.split(b"\0", 1)[0], strict)


def _decoded(data: bytes, strict: bool = True) -> str:
    try:
        return data.decode("utf-8", errors="strict" if strict else "surrogateescape")
    except UnicodeDecodeError:
        raise ValueError(f"a name in it is not Unicode: {data[:80]!r}") from None


def clean_path(path: str) -> str:
    """A path that means the same to every reader.

    Raises:
        ValueError: it is no relative path, goes up, is not in its shortest form, or is too long for a file system.
    """
    names = path.split("/")
    if (
        _UNUSABLE.search(path)
        or any(name in ("", ".", "..") or len(name.encode()) > _LONGEST_NAME for name in names)
        or len(path.encode()) > _LONGEST_PATH
    ):
        raise ValueError(f"{shown(path)} in it is no path inside an environment")
    return path


def shown(text: str) -> str:
    """A text out of a package as it can be printed, in at most one line."""
    text = text if len(text) <= 200 else f"{text[:200]}…"
    return text if text.isprintable() else ascii(text)
