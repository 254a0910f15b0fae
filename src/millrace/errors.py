"""Every error that Millrace raises on purpose.

    MillraceError                     one root; `handling` says what to do next, unknown means fatal
      UsageError (exit 2)             the command line is wrong
      ProjectError (exit 2)           a project file is wrong; carries file, line and column
      ConnectionRefused               host, port or database cannot be reached            retryable
      AuthenticationFailed            wrong user or password, or a certificate that is not trusted
      PermissionMissing               a right is missing; names the GRANT
      NotFound                        a table, column, asset, connection, run … does not exist
      KeyInvalid                      no key, a null in it, or the same key twice
      GuardRefused                    a guard (`--replace`, `max_delete`) stopped the publish
      ContractBroken                  columns, types or too many rows do not fit the contract
      ProofFailed                     what was staged is not what the source holds
      TablesDiffer                    two tables that were compared are not equal
      GateFailed                      a blocking check failed
      StepFailed                      a tool or a model that a step runs (dbt, SQL, Python) failed
      TargetBusy                      another live run is at it; says who
      SeqMoved                        someone else published since this was staged
      CommitUnknown                   the commit was sent and no answer came              retryable
      PositionRegressed               the target is older than the journal knows
      NewerFormat                     state or ledger of a newer version
      TransientFailure                deadlock, serialization, lock or connection loss    retryable
      SourceChanged                   the source changed its shape while it was read
      ExtraMissing (exit 2)           an optional dependency is not installed
      Interrupted                     Ctrl-C or SIGTERM; what was staged can be resumed

An error's text is one block without a traceback: what happened, where, the cause's own words, and what
would be right.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import ClassVar


class Handling(enum.Enum):
    """What a runner does with an error."""

    FATAL = "fatal"
    RETRYABLE = "retryable"
    SKIPPABLE = "skippable"


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a file of the project: 1-based line and column, and how many characters to mark."""

    file: str
    line: int = 0
    column: int = 0
    length: int = 1

    def __str__(self) -> str:
        text = self.file
        if self.line:
            text += f":{self.line}"
            if self.column:
                text += f":{self.column}"
        return text


class MillraceError(Exception):
    """The root of all errors that Millrace raises on purpose.

    Args:
        what: one sentence, lower case, that names the asset, table or column.
        where: a place in a file, or the name of the connection, asset or table.
        detail: further lines: offending values, the cause's own words.
        hint: what would be right, or the command that helps.

    Attributes:
        told: whether the end of a run has shown it to people already.
    """

    handling: ClassVar[Handling] = Handling.FATAL
    exit_code: ClassVar[int] = 1
    told = False

    def __init__(
        self,
        what: str,
        *,
        where: Place | str | None = None,
        detail: Sequence[str] = (),
        hint: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.detail = tuple(detail)
        self.hint = hint

    @property
    def code(self) -> str:
        """The stable name of this error for `--json` and the journal."""
        return type(self).__name__

    def __str__(self) -> str:
        lines = [self.what]
        if self.where is not None:
            lines.append(f"  {self.where}")
        lines += [f"  {line}" for line in self.detail]
        if self.hint:
            lines.append(f"  {self.hint}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, object]:
        """Return the error as JSON types."""
        return {
            "code": self.code,
            "what": self.what,
            "where": None if self.where is None else str(self.where),
            "detail": list(self.detail),
            "hint": self.hint,
            "handling": self.handling.value,
        }


class UsageError(MillraceError):
    """The command line is wrong."""

    exit_code = 2


class ProjectError(MillraceError):
    """A file of the project is wrong; `others` are further errors found in the same look, without their own others."""

    exit_code = 2
    others: tuple[ProjectError, ...] = ()

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *(f"error: {other}" for other in self.others)])


class ExtraMissing(MillraceError):
    """An optional dependency is not installed, or several: `lake,dbt`."""

    exit_code = 2

    def __init__(self, what: str, extra: str) -> None:
        names = extra.split(",")
        listed = ", ".join(repr(name) for name in names)
        one = len(names) == 1
        super().__init__(
            f"{what} needs the {'extra' if one else 'extras'} {listed}, which {'is' if one else 'are'} not installed",
            hint=f'bring {"it" if one else "them"} with: pip install "millrace[{extra}]"',
        )


class ConnectionRefused(MillraceError):
    """A host, port or database cannot be reached."""

    handling = Handling.RETRYABLE


class AuthenticationFailed(MillraceError):
    """The server refused the user or the password, or its certificate is not trusted."""


class PermissionMissing(MillraceError):
    """A right is missing; the hint names the GRANT."""


class NotFound(MillraceError):
    """Something named does not exist."""


class KeyInvalid(MillraceError):
    """There is no key, a null in it, or the same key twice."""


class GuardRefused(MillraceError):
    """A guard stopped the publish; the hint names the option that allows it."""


class ContractBroken(MillraceError):
    """Columns, types or too many rows do not fit what the contract allows."""


class ProofFailed(MillraceError):
    """What was staged or applied is not what the source holds."""


class TablesDiffer(ProofFailed):
    """Two tables that were compared are not equal: the comparison itself held."""


class GateFailed(MillraceError):
    """A blocking check failed; nothing was published."""


class StepFailed(MillraceError):
    """A tool or model that a step runs failed."""


class TargetBusy(MillraceError):
    """Another live run is at the same asset."""


class SeqMoved(MillraceError):
    """Someone else published this asset since it was staged."""


class CommitUnknown(MillraceError):
    """The commit was sent and its answer never came: the ledger decides."""

    handling = Handling.RETRYABLE


class PositionRegressed(MillraceError):
    """The target's ledger is behind what the journal saw: the target was restored."""


class NewerFormat(MillraceError):
    """State or ledger was written by a newer version of Millrace."""


class TransientFailure(MillraceError):
    """Deadlock, serialization failure, lock time-out, lost connection: trying again may help."""

    handling = Handling.RETRYABLE


class SourceChanged(MillraceError):
    """The source changed its shape while it was read."""


class Interrupted(MillraceError):
    """Ctrl-C or SIGTERM: what was staged can be resumed."""

    exit_code = 130


def did_you_mean(word: str, known: Sequence[str]) -> str | None:
    """Return `did you mean "x"?` for the nearest known word, or None when nothing is near."""
    near = get_close_matches(word, known, n=1, cutoff=0.6)
    return f'did you mean "{near[0]}"?' if near else None
