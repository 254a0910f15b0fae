"""Values of one type as another: exact ones, and no value makes the query fail."""

from __future__ import annotations

import pytest
from psycopg import sql

from millrace.core.schema import Column, Kind
from millrace.errors import ContractBroken
from millrace.postgres.catalog import columns_of_query
from millrace.postgres.convert import converted, same_values
from millrace.postgres.session import connect, database_from_url

pytestmark = pytest.mark.servers

INT = Column("v", "integer", Kind.INT32, hashed="int")
BIG = Column("v", "bigint", Kind.INT64, hashed="int")
DECIMAL = Column("v", "numeric(6,2)", Kind.DECIMAL, True, 6, 2, "text")
REAL = Column("v", "real", Kind.FLOAT32, hashed="float8")
DOUBLE = Column("v", "double precision", Kind.FLOAT64, hashed="float8")
DATE = Column("v", "date", Kind.DATE, hashed="date")
STAMP = Column("v", "timestamp", Kind.TIMESTAMP, hashed="timestamp")
BOOL = Column("v", "boolean", Kind.BOOL, hashed="bool")
UUID = Column("v", "uuid", Kind.TEXT, hashed="uuid")
TEXT = Column("v", "text", Kind.TEXT, hashed="text")
BYTES = Column("v", "bytea", Kind.BYTES, hashed="bytes")
ONE = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"
# from the type now, to what it was: value → what becomes of it (None: it is refused); a key that ends in 16 needs 16
CASES: list[tuple[str, Column, dict[str, str | None]]] = [
    ("bigint", INT, {"5": "5", "-2147483648": "-2147483648", "2147483648": None, "-2147483649": None}),
    ("numeric", INT, {"5.00": "5", "5.5": None, "NaN": None, "Infinity": None, "1e400": None}),
    ("double precision", BIG, {"5": "5", "0.5": None, "NaN": None, "Infinity": None, "1e300": None, "-0": "0"}),
    ("numeric", DECIMAL, {"1.5": "1.50", "1.505": None, "9999.99": "9999.99", "10000": None, "NaN": None}),
    ("integer", DECIMAL, {"9999": "9999.00", "10000": None}),
    ("numeric", REAL, {"0.5": "0.5", "0.1": "0.1", "16777217": None, "1e39": None, "NaN": "NaN", "1e-60": None}),
    ("double precision", REAL, {"0.1": "0.1", "1e300": None, "-0": "-0", "Infinity": "Infinity", "0.123456789": None}),
    ("numeric", DOUBLE, {"0.1": "0.1", "1e310": None, "0.1234567890123456789": None, "9007199254740993": None}),
    (
        "timestamp",
        DATE,
        {"2026-01-01": "2026-01-01", "2026-01-01 10:00": None, "infinity": None, "4713-01-01 BC": None},
    ),
    ("timestamptz", STAMP, {"2026-01-01 10:00+02": "2026-01-01 08:00:00", "infinity": None}),
    ("date", STAMP, {"2026-01-01": "2026-01-01 00:00:00", "5874897-12-31": None}),
    (
        "text",
        INT,
        {"5": "5", "-5": "-5", "05": None, "x": None, "": None, "99999999999": None, "5 ": None, "1e3": None},
    ),
    ("text", DECIMAL, {"1.50": "1.50", "1.5": None, "x": None, "99999.00": None, "NaN": None}),
    ("text", BOOL, {"true": "true", "t": None, "yes": None}),
    ("text", UUID, {ONE: ONE, ONE.upper(): None, "x": None}),
    ("text", BYTES, {"\\x00ff": "\\x00ff", "\\x0": None, "abc": None}),
    ("integer", TEXT, {"5": "5"}),
    ("timestamptz", TEXT, {"2026-01-01 00:00+02": "2025-12-31 22:00:00+00"}),
    ("int[]", INT, {"{1,2}": None}),
    ("text", DATE, {"2026-01-01": "2026-01-01", "2026-02-30": None, "1.1.2026": None, "infinity": "infinity"}),
    ("text", STAMP, {"2026-01-01 00:00:00": "2026-01-01 00:00:00", "2026-01-01": None}),
    ("text", DOUBLE, {"0.5": "0.5", "1e400": None, "x": None}),
]


@pytest.mark.parametrize("server", ["db15", "db18"])
def test_values_convert_exactly_or_not_at_all(server: str, request: pytest.FixtureRequest) -> None:
    database = database_from_url(request.getfixturevalue(server), "SRC")
    with connect(database) as connection:
        version = connection.info.server_version
        for now, old, values in CASES:
            rows = sql.SQL("select t::{} as v from unnest({}::text[]) with ordinality as u(t, n) order by n").format(
                sql.SQL(now), sql.Literal([*values, None])
            )
            (column,) = columns_of_query(connection, rows, label="SRC")
            assert not same_values(column, old)
            if version < 160_000 and now == "text" and old in (DATE, STAMP, DOUBLE):
                with pytest.raises(ContractBroken, match="a server before PostgreSQL 16 does not tell"):
                    converted(column, old, version, refuse=True)
                continue
            like = converted(column, old, version, refuse=True)
            assert same_values(like, old)
            query = sql.SQL("select {}::text, {} from ({}) q").format(like.value, like.refused[0].bad, rows)
            found = connection.execute(query).fetchall()
            assert found == [*((want, want is None) for want in values.values()), (None, False)], (now, old.type)
