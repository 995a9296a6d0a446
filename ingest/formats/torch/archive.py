"""Zip archives of PyTorch: members as blobs, read from their place in the file."""

from __future__ import annotations

import zipfile

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
        if info.compress_type != zipfile.ZIP_STORED:
            limits.current().allocate(size)
            with self.blob.stream() as stream, zipfile.ZipFile(stream) as archive, archive.open(info) as file:
                data = file.read(size + 1)
            if len(data) != size:
                raise ValueError(f"member {member} does not have the size that it announces")
            return Blob.of(data)
        header = self.blob.part(info.header_offset, 30).read()
        if not header.startswith(ZIP):
            raise ValueError(f"member {member} has no header")
        # Name and padding are between the header and the bytes
        start = (
            info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        )
        return self.blob.part(start, size)
