"""What SQL models read, kept between commands: loading the parser costs more than all else that most commands do."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace import __version__
from millrace.core.names import AssetId, fingerprint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from millrace.planner import ModelInputs
    from millrace.project import ModelFile


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a model that was parsed reads: see `planner.ModelInputs`."""

    inputs: tuple[AssetId, ...]
    dated: bool
    columns: tuple[str, ...] | None


class ParsedModels:
    """Parses the models of a project, those only whose text was never seen.

    Args:
        models: all of the project.
        cache: folder for what can be made again, in one that may be missing as long as nothing ran.
    """

    def __init__(self, models: Sequence[ModelFile], cache: Path) -> None:
        texts = sorted(fingerprint(model.text) for model in models)
        self._file = cache / f"models-{fingerprint(__version__, version('sqlglot'), *texts)}.json"
        self._known: dict[str, ModelInputs] = {}
        self._new = False
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):  # what cannot be read is parsed again
            found: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
            self._known = {text: _inputs(facts) for text, facts in found.items()}

    def __call__(self, model: ModelFile) -> ModelInputs:
        """Return what a model reads. Raises ProjectError when it does not parse."""
        text = fingerprint(model.text)
        if text not in self._known:
            from millrace.transform.sql_model import parse_model

            self._known[text] = parse_model(model.file, model.text)
            self._new = True
        return self._known[text]

    def keep(self) -> None:
        """Remember what was parsed, instead of what was before; where nothing can be written it is parsed again."""
        if not self._new:
            return
        facts = {
            text: [[[asset.layer, asset.name] for asset in one.inputs], one.dated, one.columns]
            for text, one in self._known.items()
        }
        fresh = self._file.with_suffix(f".{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(exist_ok=True)
            fresh.write_text(json.dumps(facts), encoding="utf-8")
            fresh.replace(self._file)
            for old in self._file.parent.glob("models-*.json"):
                if old != self._file:
                    old.unlink()
        self._new = False


def _inputs(facts: list[Any]) -> Inputs:
    inputs, dated, columns = facts
    found = tuple(AssetId(layer, name) for layer, name in inputs)
    return Inputs(found, bool(dated), None if columns is None else tuple(columns))
