"""Pages as a target: a folder of HTML files, each replaced by one rename, with a ledger file beside it.

The page and its ledger entry are two files, so a kill between the two renames leaves a new page under the old entry;
the next run, or the same one taken up again, writes the same page once more. That is the promise of a target without
transactions: at least once.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from millrace.core.events import reach
from millrace.core.names import AssetId, short_run
from millrace.core.staged import Counts, LedgerEntry, Proof, Staged, entry_for
from millrace.errors import ProofFailed, SeqMoved


class PageTarget:
    """A folder of pages.

    Args:
        root: the folder; made when the first page is staged.
        name: the target's name in the runtime.
    """

    def __init__(self, root: Path, name: str = "pages") -> None:
        self.root = root
        self.name = name
        self._private = root / ".millrace"

    def page(self, asset: AssetId) -> Path:
        """Return where the page is published."""
        return self.root / f"{quote(asset.name, safe=' ')}.html"

    def _ledger_file(self, asset: AssetId) -> Path:
        return self._private / f"{quote(asset.name, safe=' ')}.json"

    def stage_file(self, load: int) -> Path:
        """Return where the page of a load is staged."""
        return self._private / "stage" / f"{load}.html"

    def ledger(self, asset: AssetId) -> LedgerEntry | None:
        """Return the page's last publish; None too when someone removed the page."""
        if not self.page(asset).exists():
            return None
        try:
            return LedgerEntry.from_json(json.loads(self._ledger_file(asset).read_text("utf-8")))
        except FileNotFoundError:
            return None

    def stage(self, staged: Staged, html: str) -> Staged:
        """Write a page where no reader looks; the descriptor comes last, so a torn stage is not seen as one."""
        file = self.stage_file(staged.load)
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, html)
        _write(file.with_suffix(".json"), json.dumps(staged.to_json()))
        reach("pages.stage.closed")
        return staged

    def prove(self, staged: Staged) -> Proof:
        """Check that the staged page is whole."""
        file = Path(staged.place)
        if not file.exists() or file.stat().st_size != staged.detail["size"]:
            raise ProofFailed(f"the staged page of {staged.asset} is not whole", where=str(file))
        return Proof(staged.asset, staged.load, "none")

    def publish(
        self, staged: Sequence[Staged], proofs: Sequence[Proof], expect: Mapping[AssetId, int]
    ) -> Sequence[LedgerEntry]:
        """Replace the pages, each by one rename, if their ledgers still are as expected."""
        entries = []
        with self._locked():
            for item, proof in zip(staged, proofs, strict=True):
                found = self.ledger(item.asset)
                if found is not None and found.load == item.load:
                    entries.append(found)
                    continue
                if (found.seq if found else 0) != expect[item.asset]:
                    raise SeqMoved(f"{item.asset} was published by another run since this one was staged")
                now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
                entry = entry_for(item, proof, time=now, level="none", digest=None, rows=-1, counts=Counts())
                try:
                    html = Path(item.place).read_text("utf-8")
                except FileNotFoundError:
                    raise SeqMoved(
                        f"the stage of {item.asset} is gone: its run {short_run(item.run)} was given up",
                        hint="run again",
                    ) from None
                reach("pages.publish.before_commit")
                _write(self.page(item.asset), html)  # the stage stays whole until the ledger knows of it
                reach("pages.publish.replaced")
                _write(self._ledger_file(item.asset), json.dumps(entry.to_json()))
                reach("pages.publish.after_commit")
                self.discard(item)
                entries.append(entry)
        return entries

    def discard(self, staged: Staged) -> None:
        """Drop a staged page; the descriptor goes last, so that one that is there can be dropped again."""
        for file in (Path(staged.place), Path(staged.place).with_suffix(".json")):
            file.unlink(missing_ok=True)

    def stages(self) -> Iterable[Staged]:
        """Return the staged pages."""
        for file in sorted((self._private / "stage").glob("*.json")):
            yield Staged.from_json(json.loads(file.read_text("utf-8")))

    def gc(self, live: Callable[[str], bool]) -> Sequence[str]:
        """Drop what killed runs left: pages are quick to make again."""
        dropped = []
        for staged in tuple(self.stages()):
            if not live(staged.run):
                self.discard(staged)
                dropped.append(staged.place)
        described = {Path(staged.place) for staged in self.stages()}
        for file in (self._private / "stage").glob("*"):
            if file.suffix != ".json" and file not in described and not file.name.startswith("."):
                file.unlink(missing_ok=True)
                dropped.append(str(file))
        for folder in (self.root, self._private, self._private / "stage"):
            for half in folder.glob(".*.*"):
                if _HALF.search(half.name) and not _writing(half):
                    half.unlink(missing_ok=True)
                    dropped.append(str(half))
        return dropped

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._private.mkdir(parents=True, exist_ok=True)
        with (self._private / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


_HALF = re.compile(r"\.(html|json)\.[0-9]+$")
_HALF_SECONDS = 3600.0  # no process writes a page for that long: its id is another's by now


def _writing(half: Path) -> bool:
    """Whether the process that writes a file is still at it; its id ends the file's name."""
    try:
        os.kill(int(half.name.rpartition(".")[2]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    with contextlib.suppress(FileNotFoundError):
        return time.time() - half.stat().st_mtime < _HALF_SECONDS
    return False


def _write(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    half = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with half.open("w", encoding="utf-8") as output:
            output.write(text)
            output.flush()
            os.fsync(output.fileno())
        half.replace(file)
    finally:
        half.unlink(missing_ok=True)
