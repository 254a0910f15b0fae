"""Types of the user's own that the target of a copy has otherwise: words that came are added, the rest is explained."""

from __future__ import annotations

from millrace.errors import ContractBroken, TransientFailure
from millrace.postgres.session import translated
from millrace.postgres.usertypes import TypeDifference, type_differences
from millrace.steps.routes.postgres_look import Look

SHOWN = 5  # differences


def _differences(look: Look) -> list[TypeDifference]:
    columns = look.source.columns
    if all({one.typnamespace, one.element_namespace} <= {"pg_catalog", ""} for one in columns):
        return []
    label = look.target.database.label
    with look.target.connect("look") as there, translated(label, "compare types", connection=there):
        return type_differences(look.snap.connection, there, columns, label=label)


def add_words(look: Look) -> None:
    """Add to enums of the target what those of the source have more, where the contract lets types evolve.

    No row changes by that; a transaction that adds a word could not use it. A word that was renamed is added too, and
    the rows that have it come with the copy.

    Raises:
        PermissionMissing: the type is somebody else's.
    """
    if look.spec.type_changes != "evolve" or look.relation is None:
        return
    adding = [one.statement for one in _differences(look) if one.adds and one.statement is not None]
    if not adding:
        return
    label = look.target.database.label
    with look.target.connect("alter types") as there, translated(label, "add a value to an enum", connection=there):
        for statement in adding:
            there.execute(statement)


def other_types(look: Look, error: ContractBroken) -> ContractBroken | None:
    """Return the error about types that differ, where a value was refused; None where they do not."""
    try:
        found = _differences(look)
    except TransientFailure:  # what was refused in a COPY ended the snapshot's connection
        return None
    if not found:
        return None
    statements = [one.statement.as_string(None) for one in found[:SHOWN] if one.statement is not None]
    hint = "give its columns another type there, drop it, and run again: it is made as in the source"
    return ContractBroken(
        f"types of {look.source.label} are others in {look.target.database.label}",
        where=error.where,
        detail=[*(one.what for one in found[:SHOWN]), error.what, *error.detail],
        hint=f"run it there first: {'; '.join(statements)};" if statements else hint,
    )
