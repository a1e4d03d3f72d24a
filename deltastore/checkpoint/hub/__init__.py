"""Checkpoints on the model hub: one pinned commit, read in part or downloaded file by file.

The only package that imports huggingface_hub, and only when a hub id is used.
"""

from deltastore.checkpoint.hub.cache import blob_sha256
from deltastore.checkpoint.hub.downloads import Downloads, Unwatched
from deltastore.checkpoint.hub.listing import HubFile
from deltastore.checkpoint.hub.pinning import pin
from deltastore.checkpoint.hub.shard import HubShard
from deltastore.checkpoint.hub.snapshot import Snapshot

__all__ = ["Downloads", "HubFile", "HubShard", "Snapshot", "Unwatched", "blob_sha256", "pin"]
