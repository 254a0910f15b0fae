"""What a model refused, told in the words of the file: key, context, line, mark, and what would be right."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, RootModel, ValidationError
from pydantic_core import ErrorDetails

from millrace.errors import ProjectError, did_you_mean
from millrace.project.source import Document, Path_, found, together

Model = TypeVar("Model", bound=BaseModel)

# What a path through these keys is called: ("tables", "orders") is "table orders".
_NAMED = {
    "tables": "table",
    "environments": "environment",
    "connections": "connection",
    "pipelines": "pipeline",
    "layers": "layer",
    "kpis": "kpi",
    "charts": "chart",
}
_WANTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a mapping (key: value)",
    "mapping_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
    "list_type": "a list",
    "tuple_type": "a list",
}


def validated(model: type[Model], document: Document, value: Any = None, base: Path_ = ()) -> Model:
    """Return the document's value (or a part of it, at path `base`) as a model.

    Raises:
        ProjectError: with the place of the first wrong key or value; `others` holds the rest.
    """
    try:
        return model.model_validate(document.value if value is None else value)
    except ValidationError as error:
        raise together(problems(error, model, document, base)) from None


def problems(
    error: ValidationError, model: type[BaseModel], document: Document, base: Path_ = ()
) -> list[ProjectError]:
    """Return one error per thing the model refused, in the order of the file."""
    made = [_problem(each, model, document, base) for each in error.errors(include_url=False)]
    made.sort(key=lambda one: (getattr(one.where, "line", 0), getattr(one.where, "column", 0)))
    return made


def context(path: Sequence[str | int], file: str) -> str:
    """Return what a path is called: `table orders`, `contract of table orders`, or the file at its root."""
    words: list[str] = []
    index = 0
    while index < len(path):
        part = path[index]
        following = path[index + 1] if index + 1 < len(path) else None
        if isinstance(part, str) and part in _NAMED and following is not None:
            name = following + 1 if isinstance(following, int) else following
            words.append(f"{_NAMED[part]} {name}")
            index += 1
        elif isinstance(part, int):
            words.append(f"item {part + 1}")
        else:
            words.append(part)
        index += 1
    return " of ".join(reversed(words)) or file


def _problem(detail: ErrorDetails, model: type[BaseModel], document: Document, base: Path_) -> ProjectError:
    kind = detail["type"]
    path = (*base, *_existing(detail["loc"], document, base, kind))
    name = path[-1] if path else document.file
    around = context(path[:-1], document.file)
    if kind == "extra_forbidden":
        known = _known(model, path[len(base) : -1])
        return document.problem(f'unknown key "{name}" in {around}', path, key=True, note=_near(str(name), known))
    if kind == "missing":
        missing = str(detail["loc"][-1])
        return document.problem(f'missing key "{missing}" in {context(path, document.file)}', path, key=True)
    subject = context(path, document.file) if not path or isinstance(name, int) else f'"{name}" in {around}'
    if kind == "millrace":
        ctx = detail["ctx"]
        at = (*path, ctx["at"]) if ctx["at"] else path
        what = str(ctx["what"]).replace("{}", context(path, document.file))
        return document.problem(what, at, key=bool(ctx["key"]), hint=ctx["hint"])
    value = detail["input"]
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", str(detail["ctx"]["expected"]))
        what = f"{subject} must be {_or(options)}, not {found(value)}"
        return document.problem(what, path, note=did_you_mean(value, options) if isinstance(value, str) else None)
    return document.problem(f"{subject} {_must(kind, detail.get('ctx', {}))}, not {found(value)}", path)


def _must(kind: str, ctx: Mapping[str, Any]) -> str:
    """Return `must be …` for one of pydantic's error types."""
    if kind in _WANTED:
        return f"must be {_WANTED[kind]}"
    if kind == "greater_than_equal":
        return f"must be at least {_number(ctx['ge'])}"
    if kind == "less_than_equal":
        return f"must be at most {_number(ctx['le'])}"
    if kind == "string_too_short":
        return "must not be empty"
    if kind in {"too_short", "too_long"}:
        size = ctx.get("min_length", ctx.get("max_length"))
        return f"must hold at {'least' if kind == 'too_short' else 'most'} {size} item{'' if size == 1 else 's'}"
    return f"is wrong ({kind.replace('_', ' ')})"


def _number(value: float) -> str:
    return f"{value:g}"


def _or(options: Sequence[str]) -> str:
    return options[0] if len(options) == 1 else f"{', '.join(options[:-1])} or {options[-1]}"


def _near(word: str, known: Sequence[str]) -> str | None:
    """Return the nearest key, else all keys when they are few enough to read."""
    near = did_you_mean(word, known)
    if near or not known or len(known) > 14:
        return near
    return f"known here: {', '.join(known)}"


def _existing(loc: Sequence[str | int], document: Document, base: Path_, kind: str) -> Path_:
    """Return the part of pydantic's location that the file has; it also names types, which a file does not."""
    path: Path_ = ()
    for part in loc:
        at = (*base, *path, part)
        if at in document.values or at in document.keys:
            path = (*path, part)
        elif kind == "missing":
            break
    return path


def _known(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """Return the keys that the model allows at a path."""
    kind: Any = model
    for part in path:
        kind = _step(kind, part)
    kind = _model(kind)
    return [] if kind is None else [field.alias or name for name, field in kind.model_fields.items()]


def _step(kind: Any, part: str | int) -> Any:
    """Return the type at one key or index of a type."""
    model = _model(kind)
    if model is not None:
        for name, field in model.model_fields.items():
            if (field.alias or name) == part:
                return field.annotation
        return None
    for option in _options(kind):
        arguments = get_args(option)
        if arguments and get_origin(option) in {dict, Mapping, typing.Mapping}:
            return arguments[1]
        if arguments and get_origin(option) in {tuple, list}:
            return arguments[0]
    return None


def _options(kind: Any) -> tuple[Any, ...]:
    """Return what a type may be, without annotations and None."""
    origin = get_origin(kind)
    if origin is Annotated:
        return _options(get_args(kind)[0])
    if origin in {Union, types.UnionType}:
        return tuple(option for part in get_args(kind) for option in _options(part))
    if isinstance(kind, type) and origin is None and issubclass(kind, RootModel):
        return _options(kind.model_fields["root"].annotation)
    return (kind,)


def _model(kind: Any) -> type[BaseModel] | None:
    for option in _options(kind):
        if isinstance(option, type) and get_origin(option) is None and issubclass(option, BaseModel):
            return option
    return None
