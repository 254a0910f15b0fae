"""The step kind `import`: an exported folder becomes a table in PostgreSQL, proven by the digests in the folder.

No plan has it; the command `millrace import` makes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from millrace.core.digest import Digest
from millrace.core.names import fingerprint
from millrace.core.plan import Freshness, Step
from millrace.core.ports import Context, StageRequest
from millrace.core.position import Whole
from millrace.core.segment import Segment
from millrace.core.staged import Proof, Staged
from millrace.postgres.apply import fits_of, refuse_first_contact, refuse_referred
from millrace.postgres.catalog import Relation
from millrace.postgres.ddl import check_fit
from millrace.postgres.exported import Export, read_export
from millrace.postgres.keys import check_key
from millrace.postgres.session import translated
from millrace.postgres.source import Source
from millrace.postgres.target import PostgresTarget
from millrace.steps.resources import Resources
from millrace.steps.routes.loading import load
from millrace.steps.routes.postgres_look import whole_digest


class ImportStep:
    """Loads a folder; `spec` has `folder`, and the guards `replace` and `max_delete` (None: any number)."""

    kind: ClassVar[str] = "import"

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def fresh(self, step: Step, ctx: Context) -> Freshness:
        """Fresh while the target's rows are those of the files."""
        target, (export, _) = _target(step, ctx), read_export(Path(step.spec["folder"]))
        entry, relation = target.ledger(step.assets[0]), target.relation(step.assets[0])
        rows = export.whole.rows
        if relation is None or entry is None:
            return Freshness(False, "never published", rows, "new table, renamed in place", "transfer, table")
        if entry.digest == export.whole and _digest(target, relation, export) == export.whole:
            return Freshness(True, "the table is what the files hold", 0)
        return Freshness(False, "files and table differ", rows, "rows that differ", "transfer, table")

    def stage(self, step: Step, ctx: Context) -> tuple[Staged, ...]:
        """Load the files to where no reader looks, but for those that an earlier attempt left whole."""
        (asset,) = step.assets
        target, folder = _target(step, ctx), Path(step.spec["folder"])
        (export, _), entry, relation = read_export(folder), target.ledger(asset), target.relation(asset)
        if relation is not None:
            check_fit(export.columns, relation, label=target.database.label)
            with target.connect("check") as connection:
                with translated(target.database.label, f"look into {relation.ref}", connection=connection):
                    if entry is None and not step.spec["replace"]:
                        refuse_first_contact(connection, relation, target.database.label)
                if export.key:
                    check_key(connection, _rows(target, relation, export), export.key)
                else:
                    refuse_referred(connection, relation, target.database.label)
        request = StageRequest(
            asset=asset,
            load=ctx.load,
            run=ctx.run,
            step=step.key,
            base=0 if entry is None else entry.seq,
            how="create" if relation is None else "sync" if export.key else "truncate",
            schema=export.schema,
            inputs={},
            code=step.code,
        )
        origin = fingerprint(export.table.name, export.taken, *(file.sha256 for file in export.files), request.how)
        detail = {}
        if relation is not None:
            detail = {
                "segments": [Segment.whole().to_json()],
                "whole": export.whole.to_json(),
                "fits": fits_of(relation, export.schema.names),
                "replace": step.spec["replace"],
                "max_delete": step.spec["max_delete"],
            }
        position = Whole(export.whole, export.snapshot)
        return (load(target, request, export, folder, ctx, origin=origin, position=position, detail=detail),)

    def prove(self, step: Step, staged: Sequence[Staged], ctx: Context) -> tuple[Proof, ...]:
        """Compare the digest of what lies in the stage with the source's, which came with the files."""
        return tuple(_target(step, ctx).prove(item) for item in staged)


def _target(step: Step, ctx: Context) -> PostgresTarget:
    target = ctx.target(step.target)
    assert isinstance(target, PostgresTarget)  # noqa: S101 - the command makes no other
    return target


def _rows(target: PostgresTarget, relation: Relation, export: Export) -> Source:
    columns = relation.pick(export.schema.names)
    return Source(str(relation.ref), columns, relation, database=target.database.label)


def _digest(target: PostgresTarget, relation: Relation, export: Export) -> Digest:
    with target.connect("digest") as connection:
        return whole_digest(connection, _rows(target, relation, export))
