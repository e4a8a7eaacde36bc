"""The application: commands in their order, errors as one line, exit codes."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Never, TextIO

from cyclopts import App, CoercionError, CycloptsError, Group, MissingArgumentError, Parameter

from optimizer.cli import commands
from optimizer.cli.console import print_error, start_logging
from optimizer.cli.flags import with_flags
from optimizer.cli.spellings import translated
from optimizer.errors import EnvironmentFault, ResnetOptError, UsageError, file_system_fault
from optimizer.options import Options
from optimizer.processes import hint_for_temporary_files, home_variable, limit_library_threads
from optimizer.units import parse_duration

__all__ = ["app", "main", "parse_command_line", "run_command_line"]

HELP = """Fast inference for trained ResNets, with evidence for every claim.

Start with **resnet-opt demo**: it trains, exports, compiles, validates, benchmarks and reports, on
bundled data.
"""
EXIT_CODES = """
**Exit codes**: 0 pass · 1 internal error · 2 usage or bad input · 3 environment (no GPU, missing
library) · 4 accuracy gate failed · 5 performance regression · 6 inconclusive · 7 precision audit
failed · 130 interrupted
"""
INTERRUPTED = 130
_OTHER = Group("Other", sort_key=8)
app = App(
    name="resnet-opt",
    help=HELP,
    help_epilogue=EXIT_CODES,
    help_format="markdown",
    help_flags=("--help", "-h"),
    version_flags=(),  # a command below, because it takes --json
    default_parameter=Parameter(negative=(), show_default=False),
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
    group_commands=_OTHER,
)
app.register_install_completion_command()
app.command(commands.show_version, name="--version", group=_OTHER)
for number, (panel, group) in enumerate(commands.PANELS.items()):
    heading = Group(panel, sort_key=number)
    for order, command in enumerate(group):
        app.command(with_flags(command), group=heading, sort_key=order, help_flags=("--help", "-h"))

app.meta.suppress_keyboard_interrupt = False
_GLOBAL = Group("Global options", sort_key=99)


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    verbose: Annotated[
        int,
        Parameter(
            name=("--verbose", "-v"),
            count=True,
            group=_GLOBAL,
            help="Log progress and show tracebacks; -vv logs more.",
        ),
    ] = 0,
    log_file: Annotated[
        Path | None,
        Parameter(
            name="--log-file",
            group=_GLOBAL,
            metavar="FILE",
            help="Append the full log to this file.",
        ),
    ] = None,
    lock_timeout: Annotated[
        str | None,
        Parameter(
            name="--lock-timeout",
            group=_GLOBAL,
            metavar="DURATION",
            help="How long to wait for another process that makes the same artifact. [default: 1h]",
        ),
    ] = None,
    show_completion: Annotated[
        Literal["bash", "zsh", "fish"] | None,
        Parameter(
            name="--show-completion", group=_OTHER, help="Print the completion script of a shell."
        ),
    ] = None,
) -> Any:
    global _verbose  # noqa: PLW0603 - read by main() after the commands are done
    _verbose = verbose
    start_logging(verbose, log_file)
    commands.set_lock_timeout(None if lock_timeout is None else parse_duration(lock_timeout))
    if show_completion is not None:
        print(app.generate_completion(shell=show_completion))
        return None
    if "--version" in tokens[1:]:  # as users try it after a command
        tokens = ("--version",)
    return app(tokens)


_verbose = 0


def _interrupt(_signal: int, _frame: object) -> Never:
    raise KeyboardInterrupt


def main() -> Never:
    """Run the command line and exit with its code."""
    for name in ("SIGTERM", "SIGHUP"):  # so that half-written files are removed
        number = getattr(signal, name, None)
        # `nohup` has SIGHUP ignored, which is to stay.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    if not os.environ.get("COLUMNS", "").strip("0"):
        os.environ.pop("COLUMNS", None)  # a width of zero would hide errors
    # Before any library is loaded.
    os.environ.update({**limit_library_threads(os.environ), **home_variable(os.environ)})
    sys.stdout, sys.stderr = _tolerant(sys.stdout), _tolerant(sys.stderr)
    sys.exit(run_command_line(sys.argv[1:]))


class _TolerantFile(io.FileIO):
    """A file descriptor that drops what nobody reads any more.

    After ``resnet-opt … | head`` the verdict is still the exit code.
    """

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes


def _tolerant(stream: TextIO) -> TextIO:
    """The same standard stream, for which a closed pipe is no error."""
    if stream is None or stream not in {sys.__stdout__, sys.__stderr__}:
        return stream  # closed, or replaced by a caller of `main`, who handles errors
    try:
        stream.flush()
        raw = _TolerantFile(stream.fileno(), "wb", closefd=False)
    except (OSError, ValueError):
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        # Names of files need not be text of this encoding.
        errors="backslashreplace",
        line_buffering=stream.isatty() or stream is sys.__stderr__,
    )


def run_command_line(tokens: list[str]) -> int:
    """Run a command line and return its exit code."""
    try:
        if not tokens:
            app.help_print([])
            return 0
        app.meta(_join_dash(translated(tokens)), exit_on_error=False, print_error=False)
    except ResnetOptError as error:
        return _failed(error)
    except CycloptsError as error:
        return _failed(_usage_error(error))
    except KeyboardInterrupt:
        print("interrupted; finished files are kept, unfinished ones were removed", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return 0
    except Exception as error:  # noqa: BLE001 - a bug; users get one line, -v adds the traceback
        return _other_error(error)
    return 0


def _join_dash(tokens: list[str]) -> list[str]:
    """``-o -`` as ``--output=-``, because the parser takes a lone dash for an option."""
    joined: list[str] = []
    for word in tokens:
        if word == "-" and joined and joined[-1] in {"-o", "--output"}:
            joined[-1] = "--output=-"
        else:
            joined.append(word)
    return joined


def parse_command_line(tokens: list[str]) -> tuple[str, Options | None]:
    """Check a command line without running it.

    Returns:
        The command's name, and its options if it has any.

    Raises:
        UsageError: It cannot be parsed, or an option has an invalid value.
    """
    try:
        command, bound, _ = app.parse_args(
            translated(tokens), exit_on_error=False, print_error=False
        )
    except CycloptsError as error:
        raise _usage_error(error) from None
    parse = getattr(command, "parse", None)
    options = None if parse is None else parse(*bound.args, **bound.kwargs)[1]
    return command.__name__, options


def _usage_error(error: CycloptsError) -> UsageError:
    """Convert an error of the parser."""
    if isinstance(error, CoercionError) and error.token is not None and error.argument is not None:
        choices = error.argument.get_choices()
        if choices:  # the same message as `optimizer.options`
            name = error.argument.name.lstrip("-").replace("-", "_")
            return UsageError(
                f"{name}: {error.token.value!r} is not a choice",
                hint=f"one of {', '.join(choices)}",
            )
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        return _missing(error, error.argument.name)
    text = " ".join(str(error).split()).replace('"', "")
    problem, _, guess = text.partition(" Did you mean ")
    hint = f"did you mean {guess.partition('?')[0]}?" if guess else "see --help"
    return UsageError(problem.rstrip("."), hint=hint)


def _missing(error: MissingArgumentError, name: str) -> UsageError:
    """Name what is missing, and the options that were not understood: one may be meant for it."""
    help_hint = f"see resnet-opt {' '.join([*(error.command_chain or ()), '--help'])}"
    if error.keyword is not None:
        return UsageError(f"{error.keyword} needs a value", hint=help_hint)
    unknown = [token for token in error.unused_tokens or () if token.startswith("-")]
    more = f", and there is no option {' or '.join(unknown)}" if unknown else ""
    return UsageError(f"{name} is missing{more}", hint=help_hint)


def _failed(error: ResnetOptError) -> int:
    _print_traceback()
    print_error(error)
    return error.exit_code


def _other_error(error: Exception) -> int:
    """Report an exception that no code of this package raised on purpose."""
    if isinstance(error, FileNotFoundError) and not _current_folder_exists():
        return _failed(
            EnvironmentFault("the current folder was deleted", hint="cd to another folder")
        )
    if isinstance(error, OSError) and (hint := hint_for_temporary_files()) is not None:
        return _failed(EnvironmentFault(str(error.strerror or error), hint=hint))
    if (fault := file_system_fault(error)) is not None:
        return _failed(fault)
    return _wrong_versions(error) or _internal_error(error)


def _current_folder_exists() -> bool:
    try:
        Path.cwd()
    except OSError:
        return False
    return True


def _wrong_versions(error: Exception) -> int | None:
    """Report an exception where installed versions conflict; ``None`` where none does."""
    from optimizer.installed import command_for, version_conflicts

    conflicts = version_conflicts()
    if not conflicts:
        return None
    problem = "; ".join(conflict.text for conflict in conflicts)
    message = f"{problem} (it ended with {type(error).__name__}: {error})"
    return _failed(EnvironmentFault(message, hint=command_for(conflicts)))


def _internal_error(error: Exception) -> int:
    """Report an exception that only a bug can cause."""
    _print_traceback()
    print(f"internal error: {type(error).__name__}: {error}", file=sys.stderr)
    print("please run it again with -v and report the traceback", file=sys.stderr)
    return 1


def _print_traceback() -> None:
    if _verbose:
        import traceback

        traceback.print_exc()
