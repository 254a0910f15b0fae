"""`${env:NAME}`, `${file:path}` and secret stores: checked when a file is read, resolved when a connection is opened.

The process environment wins over the project's `.env`. A variable that stands inside a URL's user or password is
taken as it is: what a URL reserves is encoded here. What was resolved for a connection is a secret from then on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote, unquote

from dotenv import dotenv_values

from millrace.core.secrets import remember
from millrace.errors import ProjectError, did_you_mean
from millrace.project.fields import wrong
from millrace.project.secret_stores import STORES

_REFERENCE = re.compile(r"\$\{(?P<scheme>[^:{}]*)(?::(?P<name>[^{}]*))?\}")
_KNOWN = ("env", "file", *STORES)
_USERINFO = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]*://(?P<userinfo>.*)@", re.DOTALL)
_MOST_BYTES = 64 * 1024  # a secret is a line, not a disk

Fail = Callable[[str, str | None], ProjectError]
"""Makes the error for a reference from a sentence and a hint."""


def check_references(text: str) -> None:
    """Refuse what is not a reference but wants to be one (a validator's part)."""
    for match in _REFERENCE.finditer(text):
        scheme, name = match["scheme"], match["name"]
        if name is None:
            raise wrong(f'"{match[0]}" names no source', hint=f"write ${{env:{scheme}}} for an environment variable")
        if scheme not in _KNOWN:
            near = did_you_mean(scheme, _KNOWN) or f"use {', '.join(_KNOWN[:-1])} or {_KNOWN[-1]}"
            raise wrong(f'"{match[0]}" is no variable: {scheme!r} is not known', hint=near)
        if not name.strip():
            raise wrong(f'"{match[0]}" names no variable')
    if "${" in _REFERENCE.sub("", text):
        raise wrong("{} holds a ${ that is not closed", hint="write ${env:NAME} or ${file:path}")


def literal_password(url: str) -> bool:
    """Whether a URL (or a libpq text) holds a password that is not a variable."""
    bare = _REFERENCE.sub("", url)
    userinfo = _USERINFO.match(bare)
    if userinfo is not None and userinfo["userinfo"].partition(":")[2]:
        return True
    return re.search(r"\bpassword\s*=\s*[^\s&]", bare, re.IGNORECASE) is not None


class Variables:
    """The variables of one project folder."""

    def __init__(self, root: Path, environ: Mapping[str, str]) -> None:
        self._root = root
        self._environ = environ
        self._dotenv: Mapping[str, str | None] | None = None
        self._stored: dict[tuple[str, str], str] = {}

    def resolve(self, text: str, fail: Fail, *, secret: bool) -> str:
        """Return the text with every reference replaced.

        Args:
            text: what the file says.
            fail: makes the error of a reference that cannot be resolved.
            secret: remember the values, so that no message shows them.

        Raises:
            ProjectError: made by `fail`.
        """
        userinfo = _USERINFO.match(text)
        end = userinfo.end("userinfo") if userinfo else 0

        def replace(match: re.Match[str]) -> str:
            value = self._value(match["scheme"], match["name"], fail)
            if secret:
                remember(value)
            return quote(value, safe="") if match.start() < end else value

        resolved = _REFERENCE.sub(replace, text)
        if secret:
            _remember_password(resolved)
        return resolved

    def _value(self, scheme: str, name: str, fail: Fail) -> str:
        if scheme == "file":
            return self._file(name, fail)
        if scheme in STORES:
            if (scheme, name) not in self._stored:
                self._stored[scheme, name] = STORES[scheme](name, self._environ, fail)
                remember(self._stored[scheme, name])
            return self._stored[scheme, name]
        value = self._environ.get(name)
        if value is None:
            value = self._from_dotenv().get(name)
        if not value:
            state = "is not set" if value is None else "is empty"
            raise fail(f"variable {name} {state}", f"set {name} in the environment, or in .env beside millrace.yaml")
        return value

    def _file(self, name: str, fail: Fail) -> str:
        path = self._root / Path(name).expanduser()
        try:
            with path.open("rb") as stream:
                data = stream.read(_MOST_BYTES + 1)
            value = data.decode().strip("\r\n")
        except OSError as error:
            raise fail(f"file {name} cannot be read: {error.strerror}", None) from None
        except UnicodeDecodeError:
            raise fail(f"file {name} is not UTF-8", None) from None
        if not value or len(data) > _MOST_BYTES:
            raise fail(f"file {name} is {'empty' if not value else 'too large for a secret'}", None)
        return value

    def _from_dotenv(self) -> Mapping[str, str | None]:
        if self._dotenv is None:
            path = self._root / ".env"
            self._dotenv = dotenv_values(path, interpolate=False) if path.is_file() else {}
        return self._dotenv


def _remember_password(url: str) -> None:
    """Remember the password of a URL, as it stands and decoded."""
    userinfo = _USERINFO.match(url)
    password = userinfo["userinfo"].partition(":")[2] if userinfo else ""
    if password:
        remember(password)
        remember(unquote(password))
