"""SigMF recordings: metadata in JSON and samples interleaved by channel, as two files or in one archive."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from risfast.errors import FileFormatError
from risfast.io.assemble import SPEED_OF_LIGHT_M_S, FoundData, ReadOptions
from risfast.io.guard import Array, file_head, megabytes, parsing
from risfast.io.recording import raw_snapshots

_KIND = "SigMF"
_LARGEST_META = 16 << 20
_LARGEST_NUMBER = 1e300
_MOST_MEMBERS = 1000  # of an archive
_DATATYPE = re.compile(r"(?P<complex>[cr])(?P<kind>[fiu])(?P<bits>8|16|32|64)(?:_(?P<order>le|be))?")


def _conversion(stored: np.dtype[Any], pairs: bool) -> Callable[[Array], Array]:
    """From stored numbers [rows, width] to real floats, or complex ones of pairs; integers span -1 .. 1."""
    kind, bits = stored.kind, 8 * stored.itemsize
    target = np.dtype(np.float64 if bits == 64 or (kind != "f" and bits == 32) else np.float32)

    def apply(values: Array) -> Array:
        if kind == "f":
            numbers = values.astype(target, copy=False)
        else:
            numbers = np.multiply(values, target.type(2.0 ** (1 - bits)), dtype=target)
            if kind == "u":
                numbers -= target.type(1)
        return numbers.view(np.result_type(target, np.complex64)) if pairs else numbers

    return apply


def read_sigmf(path: Path, options: ReadOptions) -> FoundData:
    """Metadata, and the samples in blocks; see :func:`risfast.simulate.read`."""
    # Specification: SigMF 1.x, https://sigmf.org. The positions of the elements are not part of the core namespace.
    parts = _archived(path) if path.suffix == ".sigmf" else _beside(path)
    meta, data, core = parts.meta, parts.data, parts.document["global"]
    stored, pairs = _datatype(meta, core)
    channels = _whole(meta, core, "core:num_channels", 1)
    capture = _capture(meta, parts.document["captures"], options)
    width = channels * (2 if pairs else 1)
    row = width * stored.itemsize
    size = parts.size - _whole(meta, core, "core:trailing_bytes", 0)
    header = _whole(meta, capture, "core:header_bytes", 0)
    length = (size - header) // row
    if length < 1 or (size - header) % row:
        raise FileFormatError(
            f"{data}: {megabytes(size)} are no whole number of samples of {channels} channels, {row} bytes each "
            f"(core:datatype {core['core:datatype']}, core:num_channels {channels}): it is cut off, or "
            "core:num_channels is wrong"
        )
    convert = _conversion(stored, pairs)
    rows = raw_snapshots(data, parts.offset + header, (length, channels), width, stored, convert)
    centre = _number(meta, capture, "core:frequency")
    # Complex baseband is a series of snapshots at its centre; another frequency, or real samples, need Welch.
    wanted = None if options.request is None or options.several else options.request.points[0]
    in_time = not pairs or options.several or (wanted is not None and centre is not None and wanted != centre)
    return FoundData(
        meta,
        _KIND,
        {"samples": (length, channels)},
        snapshots=None if in_time else rows,
        time_data=rows if in_time else None,
        sample_rate_hz=_number(meta, core, "core:sample_rate"),
        frequency_hz=centre if pairs else None,
        speed_m_s=SPEED_OF_LIGHT_M_S,
        names={"snapshots": "samples", "time_data": "samples", "frequency_hz": "core:frequency"},
        details=_details(core, capture),
    )


@dataclass(frozen=True)
class _Parts:
    """Where the metadata and the samples of a recording are."""

    meta: Path  # for messages
    document: dict[str, Any]
    data: Path
    offset: int  # in bytes, of the samples in that file
    size: int


def _beside(path: Path) -> _Parts:
    """Two files of one name, or a dataset that the metadata name."""
    meta, data = path.with_suffix(".sigmf-meta"), path.with_suffix(".sigmf-data")
    file_head(meta)
    if meta.stat().st_size > _LARGEST_META:
        raise FileFormatError(f"{meta}: {megabytes(meta.stat().st_size)} are too much for SigMF metadata")
    document = _document(meta, meta.read_bytes())
    data = _dataset(meta, document["global"], data)
    return _Parts(meta, document, data, 0, data.stat().st_size)


class _Headers:
    """A file that gives no more at a time than the header of a member of an archive needs."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, count: int) -> bytes:
        if not 0 <= count <= _LARGEST_META:
            raise ValueError(f"a header of {count} bytes")
        return self._stream.read(count)


def _archived(path: Path) -> _Parts:
    """The one recording of an archive, read in its place: nothing is extracted."""
    file_head(path)
    size = path.stat().st_size
    found: dict[str, list[tarfile.TarInfo]] = {".sigmf-meta": [], ".sigmf-data": []}
    with parsing(path, "a SigMF archive (tar)"), path.open("rb") as stream:
        with tarfile.open(fileobj=_Headers(stream), mode="r:") as archive:  # type: ignore[call-overload]
            for count, member in enumerate(archive):
                _check_member(path, member, count, size)
                suffix = PurePosixPath(member.name).suffix
                if member.isreg() and suffix in found:
                    found[suffix].append(member)
        if [len(members) for members in found.values()] != [1, 1]:
            names = ", ".join(member.name[:60] for members in found.values() for member in members) or "none"
            raise FileFormatError(
                f"{path}: one .sigmf-meta and one .sigmf-data are read from an archive, found {names}; unpack it (tar "
                "-xf) and give a .sigmf-meta file"
            )
        (meta,), (data,) = found.values()
        if PurePosixPath(meta.name).with_suffix("") != PurePosixPath(data.name).with_suffix(""):
            raise FileFormatError(f"{path}: {meta.name!r} and {data.name!r} are not of one recording")
        if meta.size > _LARGEST_META:
            raise FileFormatError(f"{path}: {megabytes(meta.size)} are too much for SigMF metadata")
        stream.seek(meta.offset_data)
        document = _document(path, stream.read(meta.size))
    if document["global"].get("core:dataset") is not None or document["global"].get("core:metadata_only"):
        raise FileFormatError(f"{path}: core:dataset and core:metadata_only have no place in an archive")
    return _Parts(path, document, path, data.offset_data, data.size)


def _check_member(path: Path, member: tarfile.TarInfo, count: int, size: int) -> None:
    """Refuse what only an archive that was made to harm has."""
    name = PurePosixPath(member.name)
    if count >= _MOST_MEMBERS:
        raise FileFormatError(f"{path}: an archive of more than {_MOST_MEMBERS} members is no recording")
    if name.is_absolute() or ".." in name.parts:
        raise FileFormatError(f"{path}: the member {member.name[:80]!r} leads out of the archive")
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise FileFormatError(f"{path}: the member {member.name[:80]!r} is a link, device or hole, not a plain file")
    if member.size < 0 or member.offset_data + member.size > size:
        raise FileFormatError(
            f"{path}: the member {member.name[:80]!r} is declared to have {megabytes(member.size)}, past the end of "
            "the archive: it is cut off"
        )


def _document(meta: Path, text: bytes) -> dict[str, Any]:
    with parsing(meta, "SigMF metadata (JSON)"):
        document = json.loads(text)
    if not isinstance(document, dict):
        raise FileFormatError(f"{meta}: SigMF metadata are an object with global and captures, found {document!r:.60}")
    for name, kind in (("global", dict), ("captures", list)):
        if not isinstance(document.get(name, kind()), kind):
            raise FileFormatError(f"{meta}: {name!r} must be a JSON {kind.__name__}, found {document[name]!r:.60}")
        document.setdefault(name, kind())
    if not all(isinstance(capture, dict) for capture in document["captures"]):
        raise FileFormatError(f"{meta}: every entry of captures must be an object")
    return document


def _dataset(meta: Path, core: dict[str, Any], data: Path) -> Path:
    """The file with the samples, which must lie beside its metadata."""
    given = core.get("core:dataset")
    if core.get("core:metadata_only"):
        raise FileFormatError(f"{meta}: core:metadata_only says that there are no samples")
    if given is not None:
        if not isinstance(given, str) or given in ("", ".", "..") or set(given) & set("/\\\0:"):
            raise FileFormatError(
                f"{meta}: core:dataset must be the plain name of a file beside it, found {given!r:.80}"
            )
        data = meta.parent / given
    file_head(data)
    if data.resolve().parent != meta.resolve().parent:
        raise FileFormatError(f"{meta}: {data.name!r} leads to another folder; the samples must lie beside")
    return data


def _datatype(meta: Path, core: dict[str, Any]) -> tuple[np.dtype[Any], bool]:
    """How numbers are stored, and whether they are pairs of a complex one, from a datatype such as ci16_le."""
    text = core.get("core:datatype")
    match = _DATATYPE.fullmatch(text) if isinstance(text, str) else None
    order = match["order"] if match else None
    if not match or (match["kind"] == "f" and int(match["bits"]) < 32) or (order is None and match["bits"] != "8"):
        raise FileFormatError(
            f"{meta}: core:datatype must be such as cf32_le, ci16_le, ci8 or rf32_le, found {text!r:.60}"
        )
    stored = np.dtype(f"{match['kind']}{int(match['bits']) // 8}")
    return stored.newbyteorder(">" if order == "be" else "<"), match["complex"] == "c"


def _capture(meta: Path, captures: list[dict[str, Any]], options: ReadOptions) -> dict[str, Any]:
    """The one capture, or several at the same frequency."""
    frequencies = {_number(meta, capture, "core:frequency") for capture in captures}
    if len(frequencies) > 1:
        shown = ", ".join(f"{value:g}" if value is not None else "none" for value in sorted(frequencies, key=str))
        raise FileFormatError(
            f"{meta}: the captures are tuned to different frequencies ({shown} Hz); a recording has one wavelength, so "
            "save each capture as a recording of its own"
        )
    if any(capture.get("core:header_bytes") for capture in captures[1:]):
        raise FileFormatError(f"{meta}: core:header_bytes in the middle of the samples; save it as a SigMF dataset")
    return captures[0] if captures else {}


def _number(meta: Path, table: dict[str, Any], name: str) -> float | None:
    value = table.get(name)
    if value is None:
        return None
    # The comparison also turns NaN away, and integers that no float can hold.
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= _LARGEST_NUMBER:
        raise FileFormatError(f"{meta}: {name} must be a finite number, found {value!r:.60}")
    return float(value)


def _whole(meta: Path, table: dict[str, Any], name: str, default: int) -> int:
    value = table.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not default <= value < 1 << 40:
        raise FileFormatError(f"{meta}: {name} must be a whole number of at least {default}, found {value!r:.60}")
    return value


def _details(core: dict[str, Any], capture: dict[str, Any]) -> dict[str, str]:
    names = ("core:author", "core:description", "core:license", "core:hw", "core:recorder", "core:version")
    details = {name.removeprefix("core:"): str(core[name])[:500] for name in names if name in core}
    if "core:datetime" in capture:
        details["datetime"] = str(capture["core:datetime"])[:60]
    return details
