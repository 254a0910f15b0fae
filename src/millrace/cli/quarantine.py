"""`millrace quarantine list|show|replay|drop`: rows that were set aside."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Annotated, Any

import typer

from millrace.cli import show
from millrace.cli.main import app
from millrace.cli.options import Env, Folder, Json
from millrace.core.names import AssetId
from millrace.errors import UsageError

if TYPE_CHECKING:
    from millrace.app.quarantine import Held
    from millrace.core.quarantine import Balance, Entry
    from millrace.engine.records import RunResult

commands = typer.Typer(
    name="quarantine",
    no_args_is_help=True,
    help="Rows that a contract set aside: look at them, replay them, give them up.",
    epilog="Example:  millrace quarantine list  ·  millrace quarantine replay bronze.orders --set amount=12.50",
)
app.add_typer(commands)

Asset = Annotated[str, typer.Argument(metavar="ASSET", help="An asset: bronze.orders, or a table: raw.orders.")]
Entries = Annotated[list[str] | None, typer.Argument(metavar="[ENTRY]", help="Ids of entries, or their beginnings.")]
VALUE = 60  # characters of a value in a list


@commands.command("list", epilog="\n[bold]Example[/bold]\n\n  millrace quarantine list\n")
def list_all(folder: Folder = None, env: Env = None, json: Json = False) -> None:
    """Show how many rows each asset has in quarantine, since when and why, and how the sums add up."""
    from millrace.app import open_house
    from millrace.app.quarantine import held

    with open_house(folder, env) as house:
        found = held(house)
    if json:
        show.as_json([one.to_json() for one in found])
        return
    if not found:
        show.out(" nothing is in quarantine")
        return
    rows = [
        (str(one.asset), one.balance.open, one.balance.replayed, one.balance.dropped, _when(one.since), _reasons(one))
        for one in found
    ]
    heads = ("asset", "open", "replayed", "dropped", "oldest open", "open by rule")
    show.table(rows, heads, (False, True, True, True, False, False))
    show.out()
    for one in found:
        show.out(f" {arithmetic(one.asset, one.balance)}")


def arithmetic(asset: AssetId, balance: Balance) -> str:
    """Return the sums: `source 120,418 rows = 120,401 in bronze.orders + 17 in quarantine (digests agree)`.

    Of an asset whose loads read changes it is `read 120,418 rows = …`: what was deleted at the source is not known.
    """
    said = {None: "", True: " (digests agree)", False: " (digests differ)"}[balance.agree]
    side = "source" if balance.compared else "read"
    return f"{side} {show.count(balance.source, 'row')} = {balance.told(f'in {asset}')}{said}"


def _reasons(held: Held) -> str:
    return ", ".join(f"{rule} {count:,}" for rule, count in held.reasons.items()) or "–"


def _when(time: str | dt.datetime | None) -> str:
    """Return a time in the reader's zone."""
    if time is None:
        return "–"
    moment = time if isinstance(time, dt.datetime) else dt.datetime.fromisoformat(time)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")


SHOW_EXAMPLES = """
[bold]Examples[/bold]

  millrace quarantine show bronze.orders
  millrace quarantine show bronze.orders 3f9a
"""


@commands.command("show", epilog=SHOW_EXAMPLES)
def show_entries(
    asset: Asset,
    entry: Annotated[
        str | None, typer.Argument(metavar="[ENTRY]", help="One entry, by the beginning of its id: its whole row.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Entries to show.", min=1)] = 20,
    folder: Folder = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Show an asset's entries with key and reason, or one entry with all its values."""
    from millrace.app import open_house
    from millrace.app.quarantine import entries, held

    name = AssetId.parse(asset)
    with open_house(folder, env) as house:
        found = entries(house, name, entry)
        (sums,) = held(house, name)
    if json:
        show.as_json([_as_json(one) for one in found])
        return
    if entry is not None:
        for one in found:
            _print_entry(one)
        return
    if not found:
        show.out(f" nothing of {name} is in quarantine")
        return
    rows = [(one.id, one.status, _when(one.since), _told(one), one.reason) for one in found[:limit]]
    show.table(rows, ("entry", "status", "since", "row", "reason"))
    if len(found) > limit:
        show.out(show.painted(f" and {len(found) - limit:,} more: --limit {len(found)}", "grey"))
    show.out()
    show.out(f" {arithmetic(name, sums.balance)}")


def _told(entry: Entry) -> str:
    """Return what tells a row apart: its key, or where it stood."""
    if entry.source:
        return entry.source
    if entry.key:
        return ", ".join(f"{name} {_short(value)}" for name, value in entry.key.items())
    return ", ".join(f"{name} {_short(value)}" for name, value in list(entry.row.items())[:2])


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= VALUE else text[: VALUE - 1] + "…"


def _print_entry(entry: Entry) -> None:
    show.out(f" {entry.id} · {entry.status} · since {_when(entry.since)}, run {entry.run[:4]}")
    show.out(f" {show.plain(entry.reason)}")
    if entry.source:
        show.out(f" {show.plain(entry.source)}")
    fixed = entry.fix or {}
    heads = ("column", "value", *(("replayed as",) if fixed else ()))
    rows = []
    for name, value in entry.row.items():
        other = (_cell(fixed[name]) if fixed.get(name) != value else "",) if fixed else ()
        rows.append((name, _cell(value), *other))
    show.table(rows, heads)
    if entry.bytes is not None:
        show.out(f" bytes {entry.bytes!r}" if len(entry.bytes) <= 1_000 else f" bytes {entry.bytes[:1_000]!r} …")


def _cell(value: Any) -> str:
    return "null" if value is None else str(value)


def _as_json(entry: Entry) -> dict[str, Any]:
    return {
        "entry": entry.id,
        "asset": str(entry.asset),
        "status": entry.status,
        "rule": entry.rule,
        "column": entry.column,
        "reason": entry.reason,
        "key": dict(entry.key),
        "digest": entry.digest,
        "source": entry.source,
        "since": entry.since.isoformat(),
        "run": entry.run,
        "row": dict(entry.row),
        "bytes": None if entry.bytes is None else entry.bytes.hex(),
        "fix": None if entry.fix is None else dict(entry.fix),
    }


REPLAY_EXAMPLES = """
[bold]Examples[/bold]

  millrace quarantine replay bronze.orders 3f9a --set amount=12.50
  millrace quarantine replay bronze.orders
"""


@commands.command("replay", epilog=REPLAY_EXAMPLES)
def replay_entries(
    asset: Asset,
    entries: Entries = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="COLUMN=VALUE", help="Replace a value first; null is no value. Several times."),
    ] = None,
    folder: Folder = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Put rows into the asset that hold the rules now, with values set or after the rules were changed.

    All open entries if none is named. The source's row stays as it is and undoes nothing, until it changes.
    """
    from millrace.app import open_house
    from millrace.app.quarantine import replay

    name = AssetId.parse(asset)
    with open_house(folder, env) as house:
        _end(replay(house, name, entries or (), _changes(changes or ())), house, name, "replayed", json)


def _changes(texts: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UsageError(f"--set takes column=value, not {text!r}", hint="like --set amount=12.50")
        if name in found:
            raise UsageError(f"--set names {name} twice")
        found[name] = value
    return found


@commands.command("drop", epilog="\n[bold]Example[/bold]\n\n  millrace quarantine drop bronze.orders 3f9a\n")
def drop_entries(
    asset: Asset,
    entries: Entries = None,
    everything: Annotated[bool, typer.Option("--all", help="All open entries.")] = False,
    folder: Folder = None,
    env: Env = None,
    json: Json = False,
) -> None:
    """Give entries up: they stay on record, and no run asks for them again while their source rows stay the same."""
    from millrace.app import open_house
    from millrace.app.quarantine import drop

    if bool(entries) == everything:
        raise UsageError("drop takes entries, or --all", hint=f"see: millrace quarantine show {asset}")
    name = AssetId.parse(asset)
    with open_house(folder, env) as house:
        _end(drop(house, name, entries or ()), house, name, "dropped", json)


def _end(result: RunResult, house: Any, asset: AssetId, word: str, json: bool) -> None:
    """Tell how a load ended; a failure is raised."""
    from millrace.app.quarantine import held

    if result.errors:
        raise result.errors[0]
    (step,) = result.steps
    (sums,) = held(house, asset)
    if json:
        show.as_json({**sums.to_json(), "run": result.run.id, "notes": list(step.notes)})
        return
    stay = [note for note in step.notes if note.startswith("stays open")]
    for note in stay:
        show.out(f" {show.plain(note)}")
    show.out(f" {asset}: {word}, load {step.entries[0].seq}, {step.seconds:.1f} s")
    show.out(f" {arithmetic(asset, sums.balance)}")
    if word == "replayed":
        show.out(show.painted(" what is made from it follows with: millrace run", "grey"))
