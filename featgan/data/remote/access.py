"""How the files of a data set are read: where they are, or through the cache of the node."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from featgan.config.schema import DatasetConfig
from featgan.data.remote.cache_folder import GIGABYTE, default_cache_folder, warn_about_network_folder
from featgan.data.remote.fetching import fetch_file
from featgan.data.remote.node_cache import CacheItem, NodeCache
from featgan.data.remote.shard_files import CachedFiles, LocalFiles, ShardFiles
from featgan.errors import UserError
from featgan.system.locations import Location

RETRY_SECONDS = 900.0


@dataclass(frozen=True)
class DataAccess:
    """The folder and the limit of the node cache, and whether local files are copied to it as well.

    Without a folder, it is `default_cache_folder()`; 0 GB is the default limit.
    """

    cache_dir: Path | None = None
    cache_gb: float = 0.0
    stage: bool = False
    retry_seconds: float = RETRY_SECONDS
    may_use_other_folder: bool = False
    """Use the default folder if this one cannot be written: the node may not be the one that the folder is for."""

    @classmethod
    def from_config(cls, dataset: DatasetConfig, hang_timeout: float = 0.0) -> Self:
        """Return the access that a configuration describes.

        With a `hang_timeout`, in seconds, a download fails before the process counts as hanging, so that the error
        names the server.
        """
        max_retry_seconds = hang_timeout / 2 or math.inf
        return cls(
            dataset.cache_dir, dataset.cache_gb or 0.0, dataset.stage, min(dataset.retry_seconds, max_retry_seconds)
        )

    def open_cache(self) -> NodeCache:
        """Return the node cache, which all data sets of this process share. Raises UserError if it is not writable."""
        arguments = int(self.cache_gb * GIGABYTE), self.retry_seconds
        if self.cache_dir is None:
            return open_node_cache(default_cache_folder(), *arguments)
        try:
            return open_node_cache(self.cache_dir.absolute(), *arguments)
        except UserError as error:
            if not self.may_use_other_folder:
                raise
            logger.warning(f"{error}; using {default_cache_folder()} instead")
            return open_node_cache(default_cache_folder(), 0, self.retry_seconds)

    def open_files(self, files: Sequence[tuple[Location, int, str]]) -> ShardFiles:
        """Return files, given by their location, size in bytes and sha256, for reading.

        If one of them is not on a disk of this machine, or `stage` is set, all are read through the node cache.
        """
        if not self.stage and not any(location.is_remote for location, _, _ in files):
            return LocalFiles([location.path for location, _, _ in files])
        return CachedFiles(
            self.open_cache(), [CacheItem(sha256, num_bytes, location) for location, num_bytes, sha256 in files]
        )


logger = logging.getLogger(__name__)

DEFAULT_ACCESS = DataAccess()


@cache
def open_node_cache(folder: Path, max_bytes: int, retry_seconds: float) -> NodeCache:
    """Return the cache of this process in a folder; forked processes share it."""
    node_cache = NodeCache(folder, fetch_file, max_bytes, retry_seconds)
    warn_about_network_folder(folder)
    return node_cache
