"""The entry point of the command line."""

from __future__ import annotations

import contextlib
import errno
import gc
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from deltastore._version import __version__
from deltastore.cli.errors import INTERRUPTED, report
from deltastore.cli.group import LazyGroup
from deltastore.cli.interruption import ended_as_interrupted, ignore_signals
from deltastore.cli.limits import use_few_threads
from deltastore.cli.options import global_options
from deltastore.cli.output import silence_stdout, unwritable
from deltastore.cli.room import with_room
from deltastore.cli.session import Session
from deltastore.errors import NoSpaceError
from deltastore.system import places

_HELP = """Store what post-training did to a model, and apply it to other bases.

\b
  deltastore extract --base A --post A-INSTRUCT --name instruct
  deltastore list
  deltastore apply instruct --base B --out B-INSTRUCT

A REF is NAME (its newest version), NAME:v2, NAME:TAG, NAME@sha256:DIGEST or sha256:DIGEST.
A CKPT is a directory, a file, or a model hub's id ORG/NAME[@REVISION].
"""

_EPILOG = """\b
Exit codes: 0 done; 1 unexpected; 2 usage; 10-19 store; 20-29 ref;
30-39 incompatible; 40-49 integrity; 50-59 format; 60-69 checkpoint;
70-79 remote; 130 interrupted.

\b
Shell completion, for ~/.bashrc (zsh and fish alike):
  eval "$(_DELTASTORE_COMPLETE=bash_source deltastore)"
"""


_STORE_HELP = (
    "The store: a directory, or a name from the config file. A word with a path separator or that "
    "is an existing directory is a path; so is a word that the config file does not have, and "
    "'extract' creates that store.  [default: $DELTASTORE_HOME, else a directory of the user]"
)

_PRINTED_BY_CLICK = frozenset({"-h", "--help", "--version"})


@click.group(
    name="deltastore",
    cls=LazyGroup,
    help=_HELP,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=global_options(store_help=_STORE_HELP, store_envvar="DELTASTORE_STORE"),
)
@click.version_option(__version__, prog_name="deltastore", message="%(prog)s %(version)s")
def cli() -> None:
    """The group; what it does itself is to take the global options."""


def run() -> NoReturn:
    """Run the command line of this process, and exit."""
    use_few_threads()
    places.leave_gone_directory()
    code = main(sys.argv[1:])
    if code == INTERRUPTED:
        ignore_signals()
    # The process ends: its memory need not be searched for garbage, which took a quarter of a
    # second after the kernels were loaded.
    gc.freeze()
    sys.exit(code)


def main(argv: Sequence[str]) -> int:
    """Run a command line.

    Args:
        argv: The arguments after the program's name.

    Returns:
        The exit code.
    """
    # A command makes many objects that live until it ends; looking for garbage among them took a
    # fifth of the time of `list`.
    gc.set_threshold(200_000)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a letter shows its escape; it is no reason to fail.
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    session = Session()
    with ended_as_interrupted() as came:
        return _run(argv, session, came)


def _run(argv: Sequence[str], session: Session, came: Sequence[int]) -> int:
    try:
        code = cli.main(list(argv), prog_name="deltastore", standalone_mode=False, obj=session)
    except NoSpaceError as full:
        return report(with_room(full, session), as_json=session.json, argv=argv)
    except (Exception, KeyboardInterrupt) as caught:  # noqa: BLE001
        error: BaseException = caught
        if isinstance(caught, OSError) and not _PRINTED_BY_CLICK.isdisjoint(argv):
            silence_stdout()
            if caught.errno == errno.EPIPE:  # the reader had enough
                return 0
            error = unwritable(caught)
        # An option that failed to parse leaves no session, hence the second look.
        as_json = session.json or "--json" in argv
        if isinstance(caught, click.Abort) and caught.__cause__ is not None:
            # What click takes for the user's wish: of a file that ends early as well.
            error = caught.__cause__
        return report(error, as_json=as_json, argv=argv, interrupted=bool(came))
    return code if isinstance(code, int) else 0
