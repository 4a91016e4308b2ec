"""Tar members written without a library: the reference for the shards that featgan writes."""

import tarfile


def make_tar_member(name: str, data: bytes) -> bytes:
    """Return the header, data and padding of a tar member without owner or time: equal content gives equal bytes."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    header.mode = 0o644
    padding = -len(data) % tarfile.BLOCKSIZE
    return header.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict") + data + b"\0" * padding
