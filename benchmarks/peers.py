"""Time one peer on the table of seed.sql (or on TABLE: all but connectorx_parquet and pandas_to_sql).

    SRC=postgresql://user:pw@host:port/db DST=… python peers.py NAME [TABLE]

Names: psycopg_pipe adbc_parquet connectorx_parquet dlt_postgres dlt_connectorx dlt_parquet pandas_to_sql ingestr sling
Needs, in a virtual environment of its own: psycopg[binary] adbc-driver-postgresql connectorx pyarrow
dlt[postgres,sql_database] pandas polars sqlalchemy ingestr==0.15.9 sling sling-linux-amd64==1.4.11
(dlt, ingestr and Sling refuse a URL without a password.) To measure them beside others: compare.py.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time

SRC, DST = os.environ["SRC"], os.environ["DST"]
os.environ.update(RUNTIME__DLTHUB_TELEMETRY="false", SLING_DISABLE_TELEMETRY="TRUE", INGESTR_DISABLE_TELEMETRY="true")
TABLE = sys.argv[2] if len(sys.argv) > 2 else "events"
_FOLDER = tempfile.TemporaryDirectory(prefix="peers-")  # removed at exit, so that rounds do not fill the disk
WORK = _FOLDER.name


def psycopg_pipe():
    import psycopg

    columns = """select string_agg(format('%%I %%s', attname, format_type(atttypid, atttypmod)), ', ' order by attnum)
        from pg_attribute where attrelid = %s::regclass and attnum > 0 and not attisdropped"""
    with psycopg.connect(DST) as d, psycopg.connect(SRC) as s:
        d.execute(f"drop table if exists {TABLE}")
        d.execute(f"create table {TABLE} ({s.execute(columns, [TABLE]).fetchone()[0]})")
        with (
            s.cursor().copy(f"copy {TABLE} to stdout (format binary)") as out,
            d.cursor().copy(f"copy {TABLE} from stdin (format binary)") as into,
        ):
            for block in out:
                into.write(block)


def adbc_parquet():
    import adbc_driver_postgresql.dbapi as adbc
    import pyarrow.parquet as pq

    with adbc.connect(SRC) as connection, connection.cursor() as cursor:
        cursor.execute(f"select * from {TABLE}")
        reader = cursor.fetch_record_batch()
        with pq.ParquetWriter(f"{WORK}/adbc.parquet", reader.schema, compression="zstd") as writer:
            for batch in reader:
                writer.write_batch(batch)


def connectorx_parquet():
    import connectorx
    import pyarrow.parquet as pq

    columns = "id,user_id,event_type,amount::float8 amount,created_at,updated_at,properties::text p,note,flag,score"
    table = connectorx.read_sql(
        SRC, f"select {columns} from events", return_type="arrow", partition_on="id", partition_num=2
    )
    pq.write_table(table, f"{WORK}/cx.parquet", compression="zstd")


def _dlt(backend, destination, **options):
    import dlt
    from dlt.sources.sql_database import sql_table

    pipeline = dlt.pipeline("peer_" + backend, destination=destination, dataset_name="peer", pipelines_dir=WORK)
    table = sql_table(credentials=SRC, table=TABLE, backend=backend, chunk_size=100_000)
    pipeline.run(table, write_disposition="replace", **options)


def dlt_postgres():
    import dlt

    _dlt("pyarrow", dlt.destinations.postgres(DST))


def dlt_connectorx():
    import dlt

    _dlt("connectorx", dlt.destinations.postgres(DST))


def dlt_parquet():
    import dlt

    _dlt("pyarrow", dlt.destinations.filesystem(f"file://{WORK}/lake"), loader_file_format="parquet")


def pandas_to_sql():
    """First 100,000 rows only: multiply by 30."""
    import polars as pl
    from sqlalchemy import create_engine

    source, target = (create_engine(u.replace("postgresql:", "postgresql+psycopg:", 1)) for u in (SRC, DST))
    frame = pl.read_database(
        "select id,user_id,event_type,amount,created_at,updated_at,note,flag,score from events limit 100000", source
    )
    frame.to_pandas().to_sql("events_pd", target, if_exists="replace", index=False, method="multi", chunksize=5000)


def ingestr():
    subprocess.run(
        [
            "ingestr",
            "ingest",
            "--yes",
            "--source-uri",
            SRC,
            "--source-table",
            f"public.{TABLE}",
            "--dest-uri",
            DST,
            "--dest-table",
            f"public.ingestr_{TABLE}",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def sling():
    streams = f"--src-stream public.{TABLE} --tgt-object public.sling_{TABLE}"
    command = f"run --src-conn SRC --tgt-conn DST {streams} --mode full-refresh"
    subprocess.run([os.environ.get("SLING_BINARY", "sling"), *command.split()], check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    name = sys.argv[1]
    start = time.perf_counter()
    globals()[name]()
    seconds = time.perf_counter() - start
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    print(f"{name}: {seconds:.2f} s, peak {peak:.0f} MB")
