"""The application: commands in their order, errors as one line, exit codes."""

from __future__ import annotations

import errno
import signal
import sys
from typing import Annotated, Never

import typer

from optimizer._version import __version__
from optimizer.cli import build, job, judge, layers, machine, make, pixels
from optimizer.errors import EnvironmentFault, ResnetOptError

__all__ = ["app", "main"]

EXIT_CODES = """
[bold]Exit codes[/bold]: 0 pass · 1 internal error · 2 usage or bad input · 3 environment (no GPU,
missing library) · 4 accuracy gate failed · 5 performance regression · 6 inconclusive ·
7 precision audit failed
"""

app = typer.Typer(
    name="resnet-opt",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Trained ResNets made fast, with evidence for every claim.\n\n"
    "Start with [bold]resnet-opt demo[/bold]: it trains, exports, compiles, validates, measures and "
    "reports, on bundled data.",
    epilog=EXIT_CODES,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"resnet-opt {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[  # noqa: ARG001 - its callback has done the work
        bool,
        typer.Option(
            "--version", help="Print the version and stop.", is_eager=True, callback=_print_version
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Show tracebacks of errors.")
    ] = False,
) -> None:
    global _verbose  # noqa: PLW0603 - read by main() after the commands are done
    _verbose = verbose


_verbose = False
INTERRUPTED = 130
_OF_THE_DISK = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EISDIR, errno.ENOTDIR,
    errno.EFBIG,
}  # fmt: skip
"""What an operating system says of a folder or a disk, which is no bug."""

JOB, STEPS, RESULTS, MACHINE = "The main job", "Its steps", "Results", "Machine and data"
for command, panel in (
    (job.demo, JOB),
    (job.run, JOB),
    (make.train, STEPS),
    (make.export, STEPS),
    (make.calibrate, STEPS),
    (make.quantize, STEPS),
    (build.build, STEPS),
    (build.refit, STEPS),
    (judge.validate, STEPS),
    (judge.bench, STEPS),
    (layers.profile, STEPS),
    (judge.predict, RESULTS),
    (judge.inspect, RESULTS),
    (judge.compare, RESULTS),
    (judge.report, RESULTS),
    (pixels.preprocess, MACHINE),
    (machine.doctor, MACHINE),
    (machine.clean, MACHINE),
):
    app.command(rich_help_panel=panel, no_args_is_help=panel == STEPS)(command)


def _interrupt(_signal: int, _frame: object) -> Never:
    raise KeyboardInterrupt


def main() -> Never:
    """Run the command line and exit with its code."""
    from optimizer.cli.console import print_error

    signal.signal(signal.SIGTERM, _interrupt)  # so that half-written files are removed
    try:
        app(standalone_mode=True)
    except ResnetOptError as error:
        if _verbose:
            import traceback

            traceback.print_exc()
        print_error(error)
        sys.exit(error.exit_code)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer turns Ctrl-C into this
            typer.echo("interrupted; what was complete is kept, nothing else was written", err=True)
        raise
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            _report(error)
        said = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
        print_error(EnvironmentFault(said, mend="another folder, or room on the disk"))
        sys.exit(EnvironmentFault.exit_code)
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug, said as one
        _report(error)
    sys.exit(0)


def _report(error: Exception) -> Never:
    """What only a bug can be."""
    if _verbose:
        import traceback

        traceback.print_exc()
    typer.echo(f"internal error: {type(error).__name__}: {error}", err=True)
    typer.echo("run again with resnet-opt -v … and report the traceback", err=True)
    sys.exit(1)
