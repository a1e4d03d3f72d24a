"""The SQL index over the artifacts. The only package that knows SQL."""

from deltastore.catalog.catalog import Catalog
from deltastore.catalog.digests import DigestMemory, FileIdentity
from deltastore.catalog.local import LocalIndex
from deltastore.catalog.rows import UNREADABLE, Artifact, Listing, Record, Summary
from deltastore.catalog.schema import HEAD
from deltastore.catalog.writer import CatalogWriter

__all__ = [
    "HEAD",
    "UNREADABLE",
    "Artifact",
    "Catalog",
    "CatalogWriter",
    "DigestMemory",
    "FileIdentity",
    "Listing",
    "LocalIndex",
    "Record",
    "Summary",
]
