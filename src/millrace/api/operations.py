"""`DatabaseOperations`: a table's schema, its twin in the target, connections and rights, and integrity, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from millrace.api.monitoring import Performance, performance_monitoring
from millrace.api.records import Record
from millrace.errors import UsageError

if TYPE_CHECKING:
    from millrace.app.operations import DescribedTable


@dataclass(frozen=True, slots=True)
class TableSchema(Record):
    """A table as its server knows it.

    Attributes:
        table: schema and name, as SQL writes them.
        columns: per column name, type (as SQL writes it), nullable, default, identity, generated.
        primary_key: its columns.
        indexes: per index name, definition, unique.
        rows: the server's estimate; -1 when nothing is known.
        described: the same as Millrace itself needs it; not shown.
    """

    table: str
    columns: tuple[Mapping[str, Any], ...]
    primary_key: tuple[str, ...]
    indexes: tuple[Mapping[str, Any], ...]
    rows: int
    described: DescribedTable = field(repr=False)


@dataclass(frozen=True, slots=True)
class IntegrityReport(Record):
    """What two tables have in common, every row compared.

    Attributes:
        is_valid: whether they hold the same rows.
        source_count, target_count: rows.
        equal, differing, missing, unexpected: rows that are equal, differ, are only in the source, only in the target.
        differences: up to `sample_size` of them, in key order: key, which side has it, and each column's two values.
        columns_missing: columns that only one side has.
        statistics: by column `left` and `right`, each with `rows`, `nulls`, `min`, `max`, `sum` (numbers only).
    """

    is_valid: bool
    source_count: int
    target_count: int
    equal: int
    differing: int
    missing: int
    unexpected: int
    differences: tuple[Mapping[str, Any], ...]
    columns_missing: tuple[str, ...]
    statistics: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ConnectionReport(Record):
    """A connection that works; one that does not is an error.

    Attributes:
        server: its version.
        user, database: as whom, and where.
        may_create: whether it may make schemas.
    """

    server: str
    user: str
    database: str
    may_create: bool


class DatabaseOperations:
    """What one does with the tables of two PostgreSQL databases around a copy.

    Args:
        source, target: databases: `env:NAME`, `service:NAME`, or a URL. A URL may hold a password here; it is kept
            as a secret and shown nowhere.

    Attributes:
        performance: what each call so far took, in order.
    """

    def __init__(self, source: str, target: str) -> None:
        self._source = source
        self._target = target
        self.performance: list[Performance] = []

    def test_source_connection(self) -> ConnectionReport:
        """Reach the source. Raises ConnectionRefused, AuthenticationFailed."""
        from millrace.app.operations import reach_database

        with self._measured("test_source_connection"):
            return ConnectionReport(*reach_database(self._source, "source"))

    def test_target_connection(self) -> ConnectionReport:
        """Reach the target and see that it may be written to.

        Raises:
            ConnectionRefused, AuthenticationFailed: it cannot be reached.
            PermissionMissing: this role may not make schemas there; the hint is the GRANT.
        """
        from millrace.app.operations import reach_database

        with self._measured("test_target_connection"):
            return ConnectionReport(*reach_database(self._target, "target", to_write=True))

    def get_source_data_count(self, source_table: str, custom_where: str | None = None) -> int:
        """Count the rows that a copy would read. Raises NotFound, PermissionMissing, UsageError."""
        from millrace.app.operations import count_rows

        with self._measured("get_source_data_count"):
            return count_rows(self._source, source_table, custom_where)

    def get_table_schema(self, table_name: str) -> TableSchema:
        """Describe a table of the source. Raises NotFound, PermissionMissing."""
        from millrace.app.operations import describe_table

        with self._measured("get_table_schema"):
            found = describe_table(self._source, table_name)
        relation = found.relation
        return TableSchema(
            table=str(relation.ref),
            columns=tuple(
                {
                    "name": column.name,
                    "type": column.type,
                    "nullable": not column.not_null,
                    "default": column.default,
                    "identity": {"a": "always", "d": "by default"}.get(column.identity),
                    "generated": column.generation,
                }
                for column in relation.columns
            ),
            primary_key=relation.primary_key,
            indexes=tuple(
                {"name": index.name, "definition": index.definition, "unique": index.unique}
                for index in relation.indexes
            ),
            rows=relation.rows,
            described=found,
        )

    def create_table_if_not_exists(self, target_table: str, source_schema: TableSchema) -> tuple[str, ...]:
        """Make the target table like the source's; an existing one must fit its columns.

        As a copy does: with key, defaults, sequences, checks, unique constraints, indexes and comments.

        Not needed before a copy, which makes its table itself and publishes it whole.

        Returns:
            What the target cannot make, each with its server's reason; nothing for a table that is there.

        Raises:
            ContractBroken: the existing table does not fit; the error names the column and both types.
            PermissionMissing: naming the GRANT.
        """
        from millrace.app.operations import create_missing_table

        if not isinstance(source_schema, TableSchema):
            raise UsageError(
                f"source_schema must be what get_table_schema returns, not {type(source_schema).__name__}",
                hint="operations.create_table_if_not_exists(target, operations.get_table_schema(source))",
            )
        with self._measured("create_table_if_not_exists"):
            return create_missing_table(source_schema.described, self._target, target_table)

    def verify_data_integrity(
        self, source_table: str, target_table: str, primary_keys: Sequence[str], sample_size: int = 1000
    ) -> IntegrityReport:
        """Compare two tables: every row by digest, differing rows one by one, and statistics of each column.

        Args:
            source_table, target_table: SQL names.
            primary_keys: key columns; empty: the source's primary key.
            sample_size: most differing rows to return; all rows are compared, whatever it is.

        Raises:
            UsageError: `sample_size` is negative.
            KeyInvalid: the tables differ and there is no key.
        """
        from millrace.app.operations import compare_tables

        if sample_size < 0:
            raise UsageError(f"sample_size must be 0 or more, not {sample_size}")
        with self._measured("verify_data_integrity"):
            found, statistics = compare_tables(
                self._source, source_table, self._target, target_table, tuple(primary_keys), sample_size
            )
        return IntegrityReport(
            is_valid=found.same,
            source_count=found.rows_left,
            target_count=found.rows_right,
            equal=found.equal,
            differing=found.differing,
            missing=found.only_left,
            unexpected=found.only_right,
            differences=tuple(row.to_json() for row in found.rows),
            columns_missing=(*found.missing_left, *found.missing_right),
            statistics=statistics,
        )

    @contextmanager
    def _measured(self, name: str) -> Iterator[None]:
        with performance_monitoring(name) as measured:
            self.performance.append(measured)
            yield
