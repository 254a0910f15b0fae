"""The row digest as SQL, exact and free of order: the sum of each row's hash, which is the hash of its record's hash.

PostgreSQL's record hash is linear in its columns' hashes (31·r + h), so its sum over rows is the same when two rows
swap a value: it binds no value to its row. Hashing each record's hash once more (+20 % of the cost) binds them. Pure.

See `millrace.core.digest` for what a digest is, `types.digest_expression` for what stands for each column.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from millrace.core.digest import SEED, Digest
from millrace.core.schema import Schema
from millrace.postgres.catalog import PgColumn
from millrace.postgres.types import digest_expression, text_form


def row_hash(columns: Sequence[PgColumn]) -> sql.Composable:
    """Return the expression of one row's signed 64-bit hash; of rows to set aside with the values that are refused."""
    values = [digest_expression(column) for column in columns]
    refused = [refusal for column in columns for refusal in column.refused]
    if not refused:
        return row_hash_of(values)
    bad = sql.SQL(" or ").join(refusal.bad for refusal in refused)
    texts = [text_form(refusal.column) for refusal in refused]
    return sql.SQL("case when {} then {} else {} end").format(bad, row_hash_of([*values, *texts]), row_hash_of(values))


def row_hash_of(values: Sequence[sql.Composable]) -> sql.Composable:
    """Return the expression of the hash of a row of values."""
    record = sql.SQL("pg_catalog.hash_record_extended(row({}), {}::pg_catalog.int8)")
    # as bytes: the hash of an int8 folds it to 32 bits first
    inner = sql.SQL("pg_catalog.int8send({})").format(record.format(sql.SQL(", ").join(values), sql.Literal(SEED)))
    return record.format(inner, sql.Literal(SEED))


def shape(columns: Sequence[PgColumn]) -> str:
    """Return the digest's shape over these columns: `Schema.shape`."""
    return Schema(tuple(column.column() for column in columns)).shape


def digest_query(
    source: sql.Composable,
    columns: Sequence[PgColumn],
    where: sql.Composable | None = None,
    group: sql.Composable | None = None,
) -> sql.Composed:
    """Return a query of (rows int8, total text), or with `group` of (group, rows, total) per value of it.

    Args:
        source: what stands after FROM.
        columns: in the order of the digest.
        where: a predicate.
        group: an expression; rows for which it is null belong to no group and are left out.
    """
    aggregates = sql.SQL("pg_catalog.count(*), coalesce(pg_catalog.sum({}), 0)::pg_catalog.text").format(
        row_hash(columns)
    )
    condition = sql.SQL("") if where is None else sql.SQL(" where {}").format(where)
    if group is None:
        return sql.SQL("select {} from {}{}").format(aggregates, source, condition)
    inner = sql.SQL("select {}, {} from {}{} group by 1").format(group, aggregates, source, condition)
    return sql.SQL("select * from ({}) as g(part, rows, total) where part is not null").format(inner)


def digest_of(row: Sequence[object], shape: str) -> Digest:
    """Return the digest of a result row's (rows, total)."""
    rows, total = row
    return Digest(int(str(rows)), int(str(total)), shape)
