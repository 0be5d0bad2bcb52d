"""Errors that a user can mend, each told in one line."""

import difflib
from collections.abc import Iterable

SHOWN = 30  # names that an error lists


class UserError(Exception):
    """What the user can mend. The message is the one line that is shown; the exit code is 1."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, suggesting the nearest one that does.

    >>> str(unknown_name("data set", "glyph", ["digits", "glyphs"]))
    "unknown data set 'glyph': did you mean 'glyphs'? (known: digits, glyphs)"
    """
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f": did you mean '{close[0]}'?" if close else ""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return UserError(f"unknown {kind} '{name}'{hint} (known: {', '.join(names[:SHOWN])}{more})")
