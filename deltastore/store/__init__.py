"""Blobs, records and catalog together: what makes an artifact listed, found and kept."""

from deltastore.catalog import Artifact, FileIdentity, Listing
from deltastore.store.layout import default_store_path
from deltastore.store.publishing import Published
from deltastore.store.store import Store, open_store

__all__ = [
    "Artifact",
    "FileIdentity",
    "Listing",
    "Published",
    "Store",
    "default_store_path",
    "open_store",
]
