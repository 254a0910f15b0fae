"""The command `millrace`: one place that lists the commands; each imports what it needs when it is called."""

from __future__ import annotations

import gc
import os
import sys
from typing import Annotated, Any

import typer

from millrace import __version__
from millrace.cli import show
from millrace.errors import Interrupted, MillraceError, UsageError

WRONG_CALL = typer.BadParameter.__mro__[1]  # the parser's UsageError: typer brings its own copy and does not export it

app = typer.Typer(
    name="millrace",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Verified copies, gated models and published pages from one folder of small files.",
    epilog="Examples:  millrace copy env:SRC public.orders env:DST public.orders  ·  millrace demo  ·  millrace run",
)


def _version(wanted: bool) -> None:
    if wanted:
        show.out(f"millrace {__version__}")
        raise typer.Exit


@app.callback()
def common(
    _show: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Take what is common to all commands."""
    if debug:
        os.environ["MILLRACE_DEBUG"] = "1"


def main() -> None:
    """Run the command line; every error is one block on standard error, and the exit code says what kind it was."""
    gc.set_threshold(50_000)  # half the time of most commands is imports, which make thousands of objects that stay
    from millrace.cli import (  # noqa: F401 - they register their commands
        copying,
        demo,
        exporting,
        looking,
        projects,
        quarantine,
        verifying,
    )

    if any(name in os.environ for name in ("MILLRACE_KILL_AT", "MILLRACE_PAUSE_AT", "MILLRACE_INTERRUPT_AT")):
        from millrace.testing import killpoints

        killpoints.arm(os.environ)
    # 3M rows into a lake peak at 231 MB instead of 321 MB; must be set before pyarrow is loaded
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    json_wanted = "--json" in sys.argv
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        show.flush()
    except MillraceError as problem:
        if os.environ.get("MILLRACE_DEBUG"):
            raise
        show.error(problem, json_wanted=json_wanted)
        sys.exit(problem.exit_code)
    except KeyboardInterrupt:
        show.error(Interrupted("interrupted; what was staged can be resumed"), json_wanted=json_wanted)
        sys.exit(130)
    except Exception as problem:
        if isinstance(problem, WRONG_CALL):
            show.error(_wrong_call(problem), json_wanted=json_wanted)
            sys.exit(UsageError.exit_code)
        if os.environ.get("MILLRACE_DEBUG"):
            raise
        told = MillraceError(
            f"unexpected {type(problem).__name__}: {problem}",
            hint="this is a fault of Millrace; --debug before the command shows where",
        )
        show.error(told, json_wanted=json_wanted)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _wrong_call(problem: Any) -> UsageError:
    """Return our error for one of the parser's: its words begin lower-case, and the hint is the command's help."""
    text = str(problem.format_message()).rstrip(".")
    what, _, near = text.partition(" Did you mean ")
    what = what.rstrip(".")
    path = problem.ctx.command_path if problem.ctx else "millrace"
    return UsageError(
        what[:1].lower() + what[1:],
        hint=f"did you mean {near}" if near else f"see how it is called: {path} --help",
    )
