"""``doctor``: is this machine and is this store in order, and if not, what to type next."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deltastore.errors import DeltastoreError, StoreNotFoundError, UsageError
from deltastore.health.check import Check, Diagnosis
from deltastore.health.installation import look_at_installation
from deltastore.health.looks import look_at_store
from deltastore.store import open_store
from deltastore.system import places


def doctor(path: str | Path, *, index: str | None = None) -> Diagnosis:
    """Look at the machine, the installation and the store at ``path``; changes no artifact.

    Opening the store finishes what a stopped process left half done, as every command does.

    Args:
        path: The store.
        index: Where its index is; see ``open_store``.

    Raises:
        UsageError: A variable or option names a place that cannot be.
    """
    checks = (*look_at_installation(), *_store(places.absolute(path, called="the store"), index))
    return Diagnosis(all(check.status != "fail" for check in checks), checks)


def _store(path: Path, index: str | None) -> Iterator[Check]:
    yield Check("store", "ok", str(path))
    try:
        with open_store(path, create=False, index=index) as store:
            yield from look_at_store(store)
    except StoreNotFoundError as error:
        yield Check("store format", "warn", "there is no store yet", error.hint)
    except UsageError:
        raise  # of a variable: nothing is wrong with the store
    except DeltastoreError as error:
        yield Check("store format", "fail", error.message, error.hint)
    except OSError as error:
        yield Check("store format", "fail", f"{path} cannot be looked at: {error}.")
