"""What a hub may send, and how long it may take; docs/security.md has the table."""

from __future__ import annotations

MAX_LIST_BYTES = 8 << 20
"""A repository's list of files; of real ones some 250 bytes a file."""

MAX_LISTED_FILES = 50_000
MAX_NAME_BYTES = 1024
MAX_NAME_PART_BYTES = 255
MAX_FILE_BYTES = 1 << 48

MAX_SMALL_FILES = 500
"""Small files of one repository that are fetched."""

MAX_INDEX_BYTES = 32 << 20
"""An index; that of 200,000 tensors takes 20 MB."""

MAX_REF_BYTES = 4096
"""A file of the cache that says which commit a branch was."""

MAX_REDIRECTS = 5
MAX_REDIRECT_CHARS = 8192
MAX_ASIDE_BYTES = 64 << 10
"""The body of a redirect or a refusal, which is read only to use the connection again."""

PATIENCE_S = 20.0
"""How long a server may keep us waiting before it has to have sent something."""

BYTES_PER_S = 16 << 10
"""A second of patience is won back by so many bytes: who sends them as fast may go on for ever."""

ANSWER_S = 0.25
"""And so much by each answer that is complete: many short ones are no stall."""

LIST_S = 60.0
SMALL_FILES_S = 120.0
SMALL_FILES_BYTES_PER_S = 128 << 10
"""All small files together have ``SMALL_FILES_S`` and the time that so many bytes a second take."""

WAITS_S = 30.0
"""The seconds together that a server may ask us to wait (``Retry-After``)."""
