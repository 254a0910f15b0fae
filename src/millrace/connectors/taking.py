"""Which files of a folder a load has to read, told by what was taken before. Reads only files that might be known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from millrace.connectors.folder import Found
from millrace.connectors.lines import digest, refused
from millrace.core.position import Taken


@dataclass(frozen=True, slots=True)
class Task:
    """A file to read: all of it, or what came after what was taken before."""

    found: Found
    taken: Taken | None = None

    @property
    def size(self) -> int:
        """Bytes that are new."""
        return self.found.size - (self.taken.size if self.taken else 0)


@dataclass(frozen=True, slots=True)
class Work:
    """What a load has to do.

    Attributes:
        tasks: files to read, by name.
        noted: what is remembered of files that bring nothing: the same content under another name, or a new time.
        same: of these, names of files with a content that was taken under another name.
    """

    tasks: Sequence[Task] = ()
    noted: Mapping[str, Taken] = field(default_factory=dict)
    same: Sequence[str] = ()


def changed(found: Iterable[Found], seen: Mapping[str, Taken]) -> list[Found]:
    """Return the files that are new or have another size or time than when they were taken."""
    return [one for one in found if one.name not in seen or (one.size, one.mtime) != _state(seen[one.name])]


def goes_on(one: Found, taken: Taken) -> bool:
    """Say whether a file begins with what was taken under its name. Raises what reading may raise."""
    return one.size >= taken.size and digest(replace(one, size=taken.size)) == taken.digest


def choose(found: Iterable[Found], seen: Mapping[str, Taken]) -> Work:
    """Decide what to read.

    Args:
        found: the files that are there.
        seen: what was taken before.

    Raises:
        ContractBroken: a file became shorter than what was taken of it, or changed in it.
        NotFound, PermissionMissing, StepFailed: a file cannot be read.
    """
    noted: dict[str, Taken] = {}
    tasks = []
    for one in changed(found, seen):
        taken = seen.get(one.name)
        if taken is None or one.size > taken.size:
            tasks.append(Task(one, taken))
        elif one.size < taken.size:
            raise refused(one, taken, f"became shorter: {one.size:,} bytes, {taken.size:,} were taken already")
        elif digest(one) != taken.digest:
            raise refused(one, taken, f"changed in its {taken.size:,} bytes, which were taken already")
        else:
            noted[one.name] = replace(taken, mtime=one.mtime)
    return _once(tasks, seen, noted)


def _once(tasks: Sequence[Task], seen: Mapping[str, Taken], noted: dict[str, Taken]) -> Work:
    """Leave out new files whose content was or is taken under another name; only equal sizes are compared."""
    known = {(taken.size, taken.digest): name for name, taken in seen.items() if taken.same is None}
    sizes = Counter([*(size for size, _ in known), *(task.found.size for task in tasks)])
    kept, same = [], []
    for task in sorted(tasks, key=lambda task: (task.taken is None, task.found.name)):
        one = task.found
        if not one.size or sizes[one.size] == 1:
            kept.append(task)
            continue
        content = (one.size, digest(one))
        other = known.setdefault(content, one.name)
        if other == one.name or task.taken is not None:
            kept.append(task)
            continue
        same.append(one.name)
        noted[one.name] = Taken(one.size, one.mtime, content[1], 0, same=other)
    kept.sort(key=lambda task: task.found.name)
    return Work(kept, noted, same)


def _state(taken: Taken) -> tuple[int, int]:
    return taken.size, taken.mtime
