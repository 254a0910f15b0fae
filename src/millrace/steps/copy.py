"""The step kind `copy`: a table of a connection becomes an asset. Which way is taken depends on both ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from millrace.core.plan import Freshness, Step
from millrace.core.ports import Context, Target
from millrace.core.staged import Proof, Staged
from millrace.errors import UsageError
from millrace.steps.resources import Resources
from millrace.steps.spec import CopySpec


class CopyStep:
    """Copies tables. Each way is imported when it is taken: the base install has no lake, and files need no driver."""

    kind: ClassVar[str] = "copy"

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def fresh(self, step: Step, ctx: Context) -> Freshness:
        """Fresh while the source has not changed since the position in the ledger."""
        found = self._fresh(step, ctx)
        shared, into_lake = step.spec["copy"].get("snapshot"), step.target == "lake"
        said = [found.publishes] if found.publishes else []
        if into_lake and step.spec["copy"].get("stage"):
            said.append("Parquet files are staged anyway")
        if shared:
            said.append(f"reads the snapshot that {shared} shares")
        return found if found.fresh else replace(found, publishes="; ".join(said))

    def let_go(self, waiting: Sequence[Step]) -> None:
        """Close the snapshots that no step shares any more, and with the last step all idle connections."""
        self._resources.let_go([step.spec["copy"].get("snapshot", "") for step in waiting])

    def _fresh(self, step: Step, ctx: Context) -> Freshness:
        spec, target = CopySpec.from_json(step.spec["copy"]), ctx.target(step.target)
        entry = target.ledger(spec.asset)
        if entry is not None and entry.code != step.code:
            return Freshness(False, "its options changed")
        if entry is None and ctx.run and spec.files is None:  # a plan wants to know more
            return Freshness(False, "never published")
        if spec.files is not None:
            from millrace.steps.routes import files_lake

            return files_lake.fresh(spec, spec.files, self._resources, files_lake.lake_of(target))
        from millrace.postgres.target import PostgresTarget
        from millrace.steps.routes import postgres_postgres

        if spec.stage and ctx.run and isinstance(target, PostgresTarget):
            return Freshness(False, "seen while staging")  # where one end is asked after the other
        reader = self._resources.reader(spec.source)
        if isinstance(target, PostgresTarget):
            sifted = step.spec.get("checks") and (step.spec.get("contract") or {}).get("bad_rows") == "quarantine"
            ways = not ctx.run and not sifted
            return postgres_postgres.fresh(
                spec, reader, target, entry, now=ctx.logical_time, ways=ways, contract=step.spec.get("contract")
            )
        from millrace.lake.target import LakeTarget
        from millrace.steps.routes import postgres_lake

        if isinstance(target, LakeTarget):
            return postgres_lake.fresh(spec, reader, target, step.spec.get("contract"), now=ctx.logical_time)
        raise _no_way(spec, target.name)

    def stage(self, step: Step, ctx: Context) -> tuple[Staged, ...]:
        """Bring what differs or changed to where no reader looks."""
        spec, target = CopySpec.from_json(step.spec["copy"]), ctx.target(step.target)
        entry = target.ledger(spec.asset)
        if step.spec.get("full_refresh") or (entry is not None and entry.code != step.code):
            spec = replace(spec, full_refresh=True)  # a position says nothing about another selection of rows
        if spec.files is not None:
            from millrace.steps.routes import files_lake

            return files_lake.stage(spec, spec.files, self._resources, files_lake.lake_of(target), step, ctx)
        from millrace.postgres.target import PostgresTarget
        from millrace.steps.routes import postgres_postgres

        reader = self._resources.reader(spec.source)
        if isinstance(target, PostgresTarget) and spec.stage:
            from millrace.steps.routes import by_files
            from millrace.steps.staging import root_of

            return by_files.stage(spec, reader, target, step, ctx, root_of(self._resources.folder, spec.stage_folder))
        if isinstance(target, PostgresTarget):
            return postgres_postgres.stage(spec, reader, target, entry, step, ctx)
        from millrace.lake.target import LakeTarget
        from millrace.steps.routes import postgres_lake

        if isinstance(target, LakeTarget):
            return postgres_lake.stage(spec, reader, target, step, ctx)
        raise _no_way(spec, target.name)

    def settle(self, step: Step, ctx: Context) -> None:
        """Move files that were published to the archive, where there is one."""
        spec = CopySpec.from_json(step.spec["copy"])
        if spec.files is not None and spec.files.archive is not None:
            from millrace.steps.routes import files_lake

            files_lake.settle(spec, spec.files, self._resources, files_lake.lake_of(ctx.target(step.target)))

    def prove(self, step: Step, staged: Sequence[Staged], ctx: Context) -> tuple[Proof, ...]:
        """Compare the stage's digest with the source's; then run the checks."""
        target = ctx.target(step.target)
        proofs = tuple(self._prove(step, target, item, ctx) for item in staged)
        self._drop_files(step, ctx)
        if not step.spec.get("checks"):
            return proofs
        from millrace.postgres.target import PostgresTarget

        if isinstance(target, PostgresTarget):
            from millrace.steps.postgres_checks import check_stage

            return tuple(
                replace(proof, checks=check_stage(target, item, step, ctx))
                for item, proof in zip(staged, proofs, strict=True)
            )
        from millrace.lake.target import LakeTarget
        from millrace.steps.checking import check_lake_stage

        assert isinstance(target, LakeTarget)  # noqa: S101 - copies go to databases and lakes
        return tuple(
            replace(proof, checks=check_lake_stage(self._resources, target, item, step, ctx))
            for item, proof in zip(staged, proofs, strict=True)
        )

    def _prove(self, step: Step, target: Target, staged: Staged, ctx: Context) -> Proof:
        if step.spec["copy"].get("files") is not None:
            return target.prove(staged)
        from millrace.postgres.target import PostgresTarget

        if isinstance(target, PostgresTarget):
            return target.prove(staged)
        from millrace.lake.target import LakeTarget
        from millrace.steps.routes import postgres_lake

        assert isinstance(target, LakeTarget)  # noqa: S101 - see stage
        return postgres_lake.prove(target, staged, ctx.scratch())

    def _drop_files(self, step: Step, ctx: Context) -> None:
        """Remove the files of a copy by files: their rows lie in the target, proven."""
        if not step.spec["copy"].get("stage"):
            return
        from millrace.postgres.target import PostgresTarget
        from millrace.steps.staging import drop, root_of

        spec, target = CopySpec.from_json(step.spec["copy"]), ctx.target(step.target)
        if isinstance(target, PostgresTarget):
            root = root_of(self._resources.folder, spec.stage_folder)
            drop(root, spec.asset, target.database.place, ctx.load)


def _no_way(spec: CopySpec, target: str) -> UsageError:
    return UsageError(f"{spec.asset} cannot be copied into {target}", hint="copy into a lake layer or a connection")
