"""For whoever writes a blob store or a codec, or changes the store: what it must survive.

* ``blobs``: what every blob store promises, as a class of pytest tests to inherit;
* ``codecs``: the same for codecs;
* ``model``: a store against a plain dict, for any sequence of changes and crashes;
* ``faults``: calls to the system that fail, write short, find the disk full, or are slow;
* ``killing``: child processes that are killed where they reach a named step;
* ``artifacts``: valid artifacts, made up in a moment.

Nothing else in deltastore imports this package, which alone needs pytest and hypothesis:
``pip install 'deltastore[testing]'``. ``docs/testing.md`` shows how to use it.
"""

from __future__ import annotations

from importlib.util import find_spec

from deltastore.errors import MissingExtraError

for _name in ("hypothesis", "pytest"):
    if find_spec(_name) is None:
        raise MissingExtraError(
            f"deltastore.testing needs {_name}, which is not installed.",
            hint="Install it: `pip install 'deltastore[testing]'`.",
            package=_name,
        )
