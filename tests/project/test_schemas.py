"""JSON Schemas for editors: one per kind of file, knowing every key that the models know."""

from __future__ import annotations

import json

from millrace.project import schemas
from millrace.project.schemas import FILES


def test_one_schema_per_kind_of_file():
    made = schemas()
    assert set(made) == set(FILES) == {"millrace", "copies", "model", "checks", "dashboard"}
    for schema in made.values():
        assert schema["$schema"].endswith("2020-12/schema")
        assert json.loads(json.dumps(schema)) == schema
    assert made["millrace"]["additionalProperties"] is False
    assert set(made["millrace"]["required"]) == {"version", "name", "environments"}


def test_short_forms_and_renamed_keys_are_in_the_schema():
    copies = schemas()["copies"]
    assert {"from", "to", "defaults", "tables"} <= set(copies["properties"])
    table = copies["$defs"]["TableOptions"]["properties"]
    assert "as" in table
    key = json.dumps(table["key"])
    assert '"string"' in key
    assert '"array"' in key
    assert "incremental_sync" in json.dumps(table["mode"])
