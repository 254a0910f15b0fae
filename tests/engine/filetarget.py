"""A target, step kinds and a small project over plain files: real ledger, real compare-and-swap, real stages.

Run as a program it takes one run, or one phase of one step, through the engine; tests kill it at named points.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from millrace import errors
from millrace.core.digest import Digest
from millrace.core.events import listen, reach
from millrace.core.names import AssetId
from millrace.core.plan import Freshness, Plan, Step
from millrace.core.ports import Context
from millrace.core.position import Files, Taken, Versions
from millrace.core.schema import Column, Kind, Schema
from millrace.core.staged import CheckResult, Counts, LedgerEntry, Proof, Staged, entry_for
from millrace.engine.journal import Journal
from millrace.engine.records import RunInfo, RunResult, StepOutcome, now
from millrace.engine.retry import Retries
from millrace.engine.runner import Engine, RunOptions
from millrace.testing import killpoints

SCHEMA = Schema((Column("line", "text", Kind.TEXT, hashed="text"),))


def digest(lines: Sequence[str]) -> Digest:
    total = sum(int.from_bytes(hashlib.sha256(line.encode()).digest()[:8], "big", signed=True) for line in lines)
    return Digest(len(lines), total, SCHEMA.shape)


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


class FileTarget:
    """Assets as text files. `ledger.json` names the file of each asset: replacing it is the commit."""

    def __init__(self, root: Path, name: str = "lake") -> None:
        self.root, self.name = root, name
        (root / "stage").mkdir(parents=True, exist_ok=True)
        (root / "data").mkdir(exist_ok=True)

    def _read(self) -> dict[str, Any]:
        path = self.root / "ledger.json"
        return json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def ledger(self, asset: AssetId) -> LedgerEntry | None:
        found = self._read().get(str(asset))
        return LedgerEntry.from_json(found["entry"]) if found else None

    def rows(self, asset: AssetId) -> list[str]:
        return lines_of(self.root / "data" / self._read()[str(asset)]["file"])

    def write(self, step: Step, ctx: Context, asset: AssetId, lines: Sequence[str], **facts: Any) -> Staged:
        folder = self.root / "stage" / ctx.run / f"{asset}-{ctx.load}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        entry = self.ledger(asset)
        with (folder / "rows").open("w") as out:
            for line in lines:
                out.write(line + "\n")
                out.flush()
                reach("file.stage.row")
                if ctx.stopping():
                    raise errors.Interrupted(f"{asset} stopped while staging")
        staged = Staged(
            asset=asset, load=ctx.load, run=ctx.run, step=step.key, target=self.name,
            base=entry.seq if entry else 0, how="replace", place=str(folder), schema=SCHEMA, code=step.code,
            expected={"all": digest(lines)}, rows=len(lines), **facts,
        )  # fmt: skip
        (folder / "staged.json").write_text(json.dumps(staged.to_json()))
        return staged

    def staged_rows(self, staged: Staged) -> list[str]:
        return lines_of(Path(staged.place) / "rows")

    def prove(self, staged: Staged) -> Proof:
        found = digest(self.staged_rows(staged))
        if found != staged.expected["all"]:
            raise errors.ProofFailed(f"{staged.asset}: {found} staged, {staged.expected['all']} expected")
        return Proof(staged.asset, staged.load, "transfer", found)

    def publish(
        self, staged: Sequence[Staged], proofs: Sequence[Proof], expect: Mapping[AssetId, int]
    ) -> Sequence[LedgerEntry]:
        with self._locked():
            ledger = self._read()
            before = [self.ledger(one.asset) for one in staged]
            if all(entry and entry.load == one.load for entry, one in zip(before, staged, strict=True)):
                return [entry for entry in before if entry]
            for one, entry in zip(staged, before, strict=True):
                if (entry.seq if entry else 0) != expect[one.asset]:
                    raise errors.SeqMoved(f"{one.asset} was published by run {entry.run if entry else '?'}")
            entries = []
            for one, proof in zip(staged, proofs, strict=True):
                name = f"{one.asset}-{one.load}"
                shutil.copyfile(Path(one.place) / "rows", self.root / "data" / name)
                entry = entry_for(
                    one, proof, time=now(), level="transfer", digest=None, rows=one.rows, counts=Counts(one.rows)
                )
                ledger[str(one.asset)] = {"entry": entry.to_json(), "file": name}
                entries.append(entry)
            (self.root / "ledger.new").write_text(json.dumps(ledger))
            reach("file.publish.before_commit")
            (self.root / "ledger.new").replace(self.root / "ledger.json")
            reach("file.publish.after_commit")
            for one in staged:
                self.discard(one)
            return entries

    def discard(self, staged: Staged) -> None:
        shutil.rmtree(staged.place, ignore_errors=True)

    def stages(self) -> Iterable[Staged]:
        for path in sorted(self.root.glob("stage/*/*/staged.json")):
            yield Staged.from_json(json.loads(path.read_text()))

    def gc(self, live: Callable[[str], bool]) -> Sequence[str]:
        dropped = []
        with self._locked():
            for folder in sorted((self.root / "stage").iterdir()):
                if not live(folder.name):
                    if any(folder.iterdir()):
                        dropped.append(f"stage of {folder.name}")
                    shutil.rmtree(folder)
            used = {found["file"] for found in self._read().values()}
            for path in (self.root / "data").iterdir():
                if path.name not in used:
                    path.unlink()
            (self.root / "ledger.new").unlink(missing_ok=True)
        return dropped

    def leftovers(self) -> list[str]:
        used = {found["file"] for found in self._read().values()}
        return [
            str(path) for path in self.root.rglob("*") if path.is_file() and path.parent.name not in ("lake", "data")
        ] + [path.name for path in (self.root / "data").iterdir() if path.name not in used]


def stumble(step: Step, door: str) -> None:
    """Raise the error that the step's spec wants at this door, as often as it says (counted over processes)."""
    wanted = step.spec.get("fail", {})
    if wanted.get("door") == door:
        counter = Path(wanted["counter"])
        count = int(counter.read_text()) if counter.exists() else 0
        if count < wanted["times"]:
            counter.write_text(str(count + 1))
            if wanted["error"] == "sleep":
                time.sleep(30)
            error = getattr(errors, wanted["error"], None)
            raise error(wanted["text"]) if error else KeyError(wanted["text"])


class CopyLines:
    """A text file into an asset."""

    kind: ClassVar[str] = "copy"

    def _position(self, step: Step) -> Files:
        path = Path(step.spec["source"])
        found = path.read_bytes()
        return Files({path.name: Taken(len(found), 0, hashlib.sha256(found).hexdigest(), found.count(b"\n"))})

    def fresh(self, step: Step, ctx: Context) -> Freshness:
        stumble(step, "fresh")
        entry = ctx.target(step.target).ledger(step.assets[0])
        if entry and entry.position == self._position(step) and entry.code == step.code:
            return Freshness(True, "nothing changed")
        return Freshness(False, "never published" if entry is None else "the file changed")

    def stage(self, step: Step, ctx: Context) -> tuple[Staged, ...]:
        stumble(step, "stage")
        lines = lines_of(Path(step.spec["source"]))
        ctx.report.total(len(lines))
        (ctx.scratch() / "note").write_text("x")
        staged = ctx.target(step.target).write(step, ctx, step.assets[0], lines, position=self._position(step))  # type: ignore[attr-defined]
        ctx.report.moved(len(lines), 10 * len(lines))
        if step.spec.get("empty"):
            ctx.target(step.target).discard(staged)
            return ()
        return (staged,)

    def prove(self, step: Step, staged: Sequence[Staged], ctx: Context) -> tuple[Proof, ...]:
        reach("file.prove")
        stumble(step, "prove")
        return tuple(ctx.target(step.target).prove(one) for one in staged)


class Upper:
    """A model: the lines of its inputs in capitals."""

    kind: ClassVar[str] = "model"

    def fresh(self, step: Step, ctx: Context) -> Freshness:
        entry = ctx.target(step.target).ledger(step.assets[0])
        versions = {str(asset): ctx.version(asset) for asset in step.inputs}
        if entry and dict(entry.inputs) == versions and entry.code == step.code:
            return Freshness(True, "nothing changed")
        return Freshness(False, "inputs changed")

    def stage(self, step: Step, ctx: Context) -> tuple[Staged, ...]:
        target: Any = ctx.target(step.target)
        lines, inputs = [], {}
        for asset in step.inputs:
            version = ctx.version(asset)
            assert version is not None
            if isinstance(version, Staged):
                lines += target.staged_rows(version)
                inputs[str(asset)] = version.base + 1
            else:
                lines += target.rows(asset)
                inputs[str(asset)] = version
        stumble(step, "stage")
        upper = [line.upper() for line in lines]
        return (target.write(step, ctx, step.assets[0], upper, position=Versions(inputs), inputs=inputs),)

    def prove(self, step: Step, staged: Sequence[Staged], ctx: Context) -> tuple[Proof, ...]:
        stumble(step, "prove")
        return tuple(ctx.target(step.target).prove(one) for one in staged)


class Gate:
    """Nothing bad in what its inputs hold."""

    kind: ClassVar[str] = "gate"

    def fresh(self, step: Step, ctx: Context) -> Freshness:
        return Freshness(False, "always")

    def stage(self, step: Step, ctx: Context) -> tuple[Staged, ...]:
        return ()

    def prove(self, step: Step, staged: Sequence[Staged], ctx: Context) -> tuple[Proof, ...]:
        target: Any = ctx.target(step.spec["reads"])
        results = []
        for asset in step.inputs:
            version = ctx.version(asset)
            lines = target.staged_rows(version) if isinstance(version, Staged) else target.rows(asset)
            bad = [line for line in lines if "BAD" in line.upper()]
            results.append(CheckResult("no_bad", asset, not bad, True, len(bad), f"{len(bad)} bad lines", tuple(bad)))
        ctx.report.checks(results)
        if any(not result.passed for result in results):
            raise errors.GateFailed(f"{step.label}: {results[0].detail}")
        return ()


class Watch:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []
        self.finished: list[str] = []
        self.total_rows = 0

    def start_run(self, run: RunInfo, plan: Plan) -> None: ...

    def step_started(self, step: Step) -> Watch:
        return self

    def step_finished(self, step: Step, outcome: StepOutcome) -> None:
        self.finished.append(f"{outcome.label} {outcome.status}")

    def say(self, event: str, text: str, step: Step | None = None) -> None:
        self.said.append((event, text))

    def end_run(self, result: RunResult) -> None: ...

    def close(self) -> None: ...

    def total(self, rows: int | None) -> None: ...

    def moved(self, rows: int, size: int) -> None:
        self.total_rows += rows

    def note(self, text: str) -> None: ...

    def checks(self, results: Sequence[CheckResult]) -> None: ...


class Shop:
    """bronze.orders and bronze.customers from files, silver.orders from both; more by `add`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lake = FileTarget(root / "lake")
        self.watch = Watch()
        self.orders, self.customers = root / "orders.txt", root / "customers.txt"
        if not self.orders.exists():
            self.orders.write_text("one\ntwo\nthree\n")
            self.customers.write_text("ann\nbob\n")
        self.steps = [
            self.copy("orders"),
            self.copy("customers"),
            self.model("silver.orders", ["bronze.orders", "bronze.customers"]),
        ]

    def copy(self, name: str, **spec: Any) -> Step:
        return Step(
            f"copy:bronze.{name}", "copy", f"bronze.{name}", (AssetId("bronze", name),), target="lake",
            group=spec.pop("group", f"copy:bronze.{name}"), code="1", spec={"source": str(self.root / f"{name}.txt"), **spec},
        )  # fmt: skip

    def model(self, name: str, inputs: Sequence[str], group: str = "", **more: Any) -> Step:
        return Step(
            f"model:{name}", "model", name, (AssetId.parse(name),), tuple(AssetId.parse(i) for i in inputs),
            target="lake", group=group or f"model:{name}", code="1", **more,
        )  # fmt: skip

    def gate(self, name: str, inputs: Sequence[str], group: str = "") -> Step:
        return Step(
            f"gate:{name}", "gate", name, (), tuple(AssetId.parse(i) for i in inputs), group=group or f"gate:{name}",
            spec={"reads": "lake"},
        )  # fmt: skip

    def together(self) -> None:
        """Make one group of everything, with a gate at its end."""
        self.steps = [
            self.copy("orders", group="g"),
            self.copy("customers", group="g"),
            self.model("silver.orders", ["bronze.orders", "bronze.customers"], "g"),
            self.gate("silver.orders", ["silver.orders"], "g"),
        ]

    def failing(
        self, position: int, error: str, *, door: str = "stage", times: int = 99, text: str = "as wanted"
    ) -> None:
        step = self.steps[position]
        fail = {
            "error": error,
            "door": door,
            "times": times,
            "text": text,
            "counter": str(self.root / f"count{position}"),
        }
        self.steps[position] = Step(
            step.key, step.kind, step.label, step.assets, step.inputs, step.after, step.target, step.group, step.code,
            step.dated, {**step.spec, "fail": fail},
        )  # fmt: skip

    @property
    def plan(self) -> Plan:
        return Plan(tuple(self.steps))

    def journal(self) -> Journal:
        return Journal(self.root / "state.db")

    def engine(self, targets: Mapping[str, Any] | None = None, **more: Any) -> Engine:
        return Engine(
            self.journal(),
            {kind.kind: kind for kind in (CopyLines(), Upper(), Gate())},
            targets or {"lake": self.lake},
            observer=self.watch,
            work=self.root / "work",
            project="shop",
            env="dev",
            retries=Retries(3, float(os.environ.get("MILLRACE_RETRY_WAIT", "0.01")), 60, 0.01),
            **more,
        )

    def run(self, **more: Any) -> RunResult:
        options = {name: more.pop(name) for name in list(more) if name in RunOptions.__slots__}
        engine = self.engine(**{name: more.pop(name) for name in list(more) if name in ("targets", "lease_ttl")})
        return engine.run(self.plan, options=RunOptions(**options), **more)

    def save(self) -> Path:
        """Write the steps for a child process."""
        path = self.root / "plan.json"
        path.write_text(json.dumps([step.to_json() for step in self.steps]))
        return path

    def load(self) -> None:
        self.steps = [
            Step(**{**data, "assets": tuple(map(AssetId.parse, data["assets"])),
                    "inputs": tuple(map(AssetId.parse, data["inputs"])), "after": tuple(data["after"])})
            for data in json.loads((self.root / "plan.json").read_text())
        ]  # fmt: skip

    def state(self) -> dict[str, tuple[int, list[str]]]:
        """Asset → (seq, rows) of what is published."""
        return {
            name: (found["entry"]["seq"], lines_of(self.lake.root / "data" / found["file"]))
            for name, found in sorted(self.lake._read().items())
        }


def main(root: str, arguments: Mapping[str, Any]) -> int:
    shop = Shop(Path(root))
    shop.load()
    killpoints.arm(os.environ)
    if os.environ.get("SHOW"):
        listen(lambda point: print(point, flush=True))
    if phase := arguments.get("phase"):
        outcomes = shop.engine().phase(shop.plan, arguments["key"], arguments["run"], phase)
        outcome = next(outcome for outcome in outcomes if outcome.key == arguments["key"])
        print(json.dumps(outcome.to_json()))
        return 1 if outcome.error else 0
    try:
        result = shop.run(**arguments)
    except errors.MillraceError as error:
        print(json.dumps({"raised": error.to_json()}))
        return 3
    print(json.dumps(result.to_json()))
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], json.loads(sys.argv[2])))
