"""A small project for tests of the command line: a copy into the lake, a model, and a copy into a database."""

from __future__ import annotations

from pathlib import Path

MANIFEST = """\
version: 1
name: small
layers: {bronze: lake, silver: lake}
environments:
  dev:
    connections:
      src: {type: postgres, url: "${env:SRC}"}
      dst: {type: postgres, url: "${env:DST}"}
    lake: ./lake
pipelines:
  nightly: {}
"""
FILES = {
    "millrace.yaml": MANIFEST,
    "copies/src.yaml": "from: src\nto: bronze\ntables:\n  accounts: {key: id}\n",
    "copies/out.yaml": "from: src\nto: dst.raw\ntables:\n  accounts: {key: id}\n",
    "models/silver/accounts.sql": "select id, upper(name) as name from bronze.accounts\n",
}
SOURCE = """
create table accounts (id int primary key, name text, updated_at timestamptz not null default now());
insert into accounts (id, name) select i, 'n' || i from generate_series(1, 300) as i;
"""


def write(folder: Path, more: dict[str, str | None] | None = None) -> Path:
    """Write the project; a file of `more` replaces one, or leaves it out when it is None."""
    for name, text in {**FILES, **(more or {})}.items():
        if text is not None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return folder
