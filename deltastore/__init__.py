"""deltastore: a persistent store and registry for weight deltas of large models.

    import deltastore

    store = deltastore.open()
    instruct = store.extract("base-a", "post-a", name="instruct")
    store.apply(instruct, base="base-b", out="base-b-instruct")

Importing the package costs nothing; what a call needs is imported by that call.
"""

from __future__ import annotations

from deltastore._version import __version__

# Not from typing: its import would be all that this module costs. Type checkers know the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from deltastore import errors as errors
    from deltastore.api import DeltaStore as DeltaStore
    from deltastore.api import open as open  # noqa: A004

__all__ = ["DeltaStore", "__version__", "errors", "open"]

if not TYPE_CHECKING:

    def __getattr__(name):
        """Import ``open``, ``DeltaStore`` or ``errors`` when it is first asked for."""
        import importlib

        if name in ("open", "DeltaStore"):
            return getattr(importlib.import_module("deltastore.api"), name)
        if name == "errors":
            return importlib.import_module("deltastore.errors")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
