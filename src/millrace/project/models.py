"""`models/<layer>/<name>.yaml`: what the SQL beside it does not say."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, model_validator

from millrace.project.checks import CheckSet
from millrace.project.fields import Part, RowContract, Text, Texts, unbuilt, wrong

_kind = unbuilt({"interval": '"kind" interval is not built yet: use full or upsert'})


class ModelOptions(Part):
    """Kind, key, partitions, description, contract and checks of a model."""

    kind: Annotated[
        Literal["full", "upsert"], BeforeValidator(_kind, json_schema_input_type=Literal["full", "upsert"])
    ] = "full"
    key: Texts | None = None
    partitions: Texts | None = None
    description: Text | None = None
    contract: RowContract | None = None
    checks: CheckSet | None = None

    @model_validator(mode="after")
    def _key_of_upsert(self) -> ModelOptions:
        if self.kind == "upsert" and self.key is None:
            raise wrong("kind upsert needs a key", at="kind", hint="key: order_id, or a list of columns")
        return self
