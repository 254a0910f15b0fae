"""Secrets as values that do not show themselves, and a redactor for texts that others made."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

_known: set[str] = set()
_fixed: set[str] = set()
HIDDEN = "***"


class Secret:
    """A text that prints as `***`; `reveal()` gives it to the one call that needs it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value
        remember(value)

    def reveal(self) -> str:
        """Return the secret text."""
        return self._value

    def __repr__(self) -> str:
        return HIDDEN

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


def remember(value: str) -> None:
    """Let `redact` hide a text and its URL-encoded, JSON and Python forms, unless it is under four characters."""
    if len(value) >= 4:
        _known.update({value, quote(value, safe=""), quote(value), json.dumps(value)[1:-1], repr(value)[1:-1]})


def fixed(sentence: str) -> str:
    """Let `redact` leave a fixed sentence whole, and return it.

    A password that is a common word would be given away by the gap that it left in a sentence that everybody knows.
    Only for text of the source code: nothing may have been put into it.
    """
    _fixed.add(sentence)
    return sentence


def redact(text: str) -> str:
    """Return the text with every known secret hidden, longest first; `fixed` sentences stay whole."""
    for value in sorted(_known, key=len, reverse=True):
        around = sorted((one for one in _fixed if value in one and value != one), key=len, reverse=True)
        if around and value in text:
            whole = "|".join(re.escape(one) for one in around)
            text = re.sub(f"({whole})|{re.escape(value)}", lambda found: found[1] or HIDDEN, text)
        else:
            text = text.replace(value, HIDDEN)
    return text
