"""The journal's tables: times are UTC ISO 8601 texts, `heartbeat` counts seconds since the epoch, JSON is text."""

FORMAT = 1
"""Version of the journal; docs/reference/formats.md describes it. A newer one is refused."""

TABLES = (
    "create table if not exists format (version integer not null primary key)",
    # pid is null where an orchestrator runs the phases, each in a process of its own
    """create table if not exists runs (
        id text not null primary key, project text not null, env text not null, pipeline text not null,
        started text not null, ended text, status text not null, logical_time text not null, host text not null,
        pid integer, command text not null)""",
    "create index if not exists ix_runs_started on runs (started)",
    """create table if not exists steps (
        run text not null references runs on delete cascade, key text not null, position integer not null,
        kind text not null, label text not null, target text not null, phase text not null, started text, ended text,
        rows integer, seconds float, peak_rss integer, message text not null, bases text, staged text, proofs text,
        entry text, error text, primary key (run, key))""",
    "create index if not exists ix_steps_key on steps (key)",
    "create index if not exists ix_steps_phase on steps (phase)",
    """create table if not exists leases (
        name text not null primary key, run text not null, host text not null, pid integer not null,
        owner text not null, acquired text not null, heartbeat float not null)""",
    "create index if not exists ix_leases_run on leases (run)",
    """create table if not exists checks (
        id integer not null primary key, run text not null, step text not null, layer text not null,
        asset text not null, name text not null, passed boolean not null, blocking boolean not null, failing integer,
        detail text not null, sample text not null,
        foreign key (run, step) references steps (run, key) on delete cascade)""",
    "create index if not exists checks_by_step on checks (run, step)",
    # the last publish that was seen: a ledger behind it means that the target was restored
    """create table if not exists published (
        scope text not null, target text not null, layer text not null, name text not null, seq integer not null,
        load text not null, run text not null, time text not null, primary key (scope, target, layer, name))""",
    # runs of other journals whose stages were met in a target, and since when we know of them
    "create table if not exists strangers (run text not null primary key, seen text not null)",
)

STEP_FACTS = {
    "phase": "phase = :phase",
    "ended": "ended = :ended",
    "rows": "rows = :rows",
    "seconds": "seconds = :seconds",
    "peak_rss": "peak_rss = :peak_rss",
    "message": "message = :message",
    "bases": "bases = :bases",
    "staged": "staged = :staged",
    "proofs": "proofs = :proofs",
    "entry": "entry = :entry",
    "error": "error = :error",
}
"""What can be changed of a step, as `update … set` has it."""
