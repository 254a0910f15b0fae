from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from millrace.app.parsed import ParsedModels
from millrace.core.names import AssetId
from millrace.errors import Place, ProjectError
from millrace.project import ModelFile
from millrace.project.models import ModelOptions

SALES = "select order_date, count(*) as orders from silver.orders where order_date = $today group by all"
STAR = "select * from bronze.orders"


def model(name: str, text: str) -> ModelFile:
    file = f"models/silver/{name}.sql"
    return ModelFile(AssetId("silver", name), file, text, ModelOptions(), None, Place(file, 1))


def test_what_was_parsed_is_not_parsed_again(tmp_path: Path) -> None:
    models = [model("sales", SALES), model("orders", STAR)]
    cache = tmp_path / ".millrace" / "cache"
    first = ParsedModels(models, cache)
    parsed = [first(one) for one in models]
    first.keep()
    assert not cache.exists()  # nothing ran here yet
    cache.parent.mkdir()
    first = ParsedModels(models, cache)
    assert [first(one) for one in models] == parsed
    first.keep()
    again = [ParsedModels(models, cache)(one) for one in models]
    facts = [(one.inputs, one.dated, one.columns) for one in again]
    assert facts == [(one.inputs, one.dated, one.columns) for one in parsed]
    assert facts == [
        ((AssetId("silver", "orders"),), True, ("order_date", "orders")),
        ((AssetId("bronze", "orders"),), False, None),
    ]
    code = (
        "import sys; from pathlib import Path; from types import SimpleNamespace as Model;"
        "from millrace.app.parsed import ParsedModels;"
        f"models = [Model(text=text) for text in {[SALES, STAR]!r}]; parsed = ParsedModels(models, Path({str(cache)!r}));"
        "[parsed(one) for one in models]; assert 'sqlglot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_what_still_is_there_is_kept(tmp_path: Path) -> None:
    for text in (STAR, SALES):
        found = ParsedModels([model("orders", text)], tmp_path)
        found(model("orders", text))
        found.keep()
    (kept,) = tmp_path.iterdir()
    kept.write_text("[1, 2")
    broken = ParsedModels([model("orders", SALES)], tmp_path)
    assert broken(model("orders", SALES)).dated
    with pytest.raises(ProjectError, match="does not parse"):
        broken(model("orders", "select from where"))
