"""Zip archives of PyTorch: members as blobs, read from their place in the file."""

from __future__ import annotations

import zipfile
import zlib

from cnnfilterdb.ingest.formats import limits
from cnnfilterdb.ingest.formats.blob import Blob

__all__ = ["ZIP", "TorchArchive"]

ZIP = b"PK\x03\x04"


class TorchArchive:
    """Members of a zip archive, as blobs."""

    def __init__(self, blob: Blob) -> None:
        self.blob = blob
        try:
            with blob.stream() as stream, zipfile.ZipFile(stream) as archive:
                self.infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}
        except zipfile.BadZipFile as error:
            raise ValueError(f"a zip archive that is truncated or damaged: {error}") from error
        limits.current().create(len(self.infos))

    def __contains__(self, member: str) -> bool:
        return member in self.infos

    def size(self, member: str) -> int:
        """Number of bytes of a member, after a check that they can be read."""
        info = self.infos.get(member)
        if info is None:
            raise ValueError(f"member {member} is missing")
        if info.flag_bits & 1:
            raise ValueError(f"member {member} is encrypted")
        if info.compress_type == zipfile.ZIP_STORED and info.header_offset + info.file_size > self.blob.size:
            raise ValueError(f"member {member} is truncated")
        return info.file_size

    def member(self, member: str) -> Blob:
        """The bytes of a member; a compressed one is read into memory."""
        size, info = self.size(member), self.infos[member]
        if info.compress_type == zipfile.ZIP_STORED:
            return self.blob.part(self._start(info), size)
        limits.current().allocate(size)
        data = self._inflated(info) if info.compress_type == zipfile.ZIP_DEFLATED else self._unpacked(info)
        if len(data) != size:
            raise ValueError(f"member {member} does not have the size that it announces")
        return Blob.of(data)

    def _start(self, info: zipfile.ZipInfo) -> int:
        """Place of the first byte of a member: its name and padding are between its header and its bytes."""
        header = self.blob.part(info.header_offset, 30).read()
        if not header.startswith(ZIP):
            raise ValueError(f"member {info.filename} has no header")
        lengths = header[26:28], header[28:30]
        return info.header_offset + 30 + sum(int.from_bytes(length, "little") for length in lengths)

    def _inflated(self, info: zipfile.ZipInfo) -> bytes:
        """The bytes of a deflated member, and no more than one beyond those that are announced.

        PyTorch deflates the sources of a TorchScript network. For each of hundreds, `zipfile` would read the list of
        all members again.
        """
        limits.current().allocate(info.compress_size)
        packed = self.blob.part(self._start(info), info.compress_size).read()
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, info.file_size + 1)
        except zlib.error as error:
            raise ValueError(f"member {info.filename} is damaged: {error}") from error
        if zlib.crc32(data) != info.CRC:
            raise ValueError(f"member {info.filename} is damaged: its checksum is wrong")
        return data

    def _unpacked(self, info: zipfile.ZipInfo) -> bytes:
        with self.blob.stream() as stream, zipfile.ZipFile(stream) as archive, archive.open(info) as file:
            return file.read(info.file_size + 1)
