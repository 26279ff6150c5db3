"""`kernelbridge`: the list of commands, the options before them, how every error ends.

A command's own module is loaded when it is called for: `--help` and `--version` need none of them.
"""

from __future__ import annotations

import errno
import importlib
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from kernelbridge.cli import output
from kernelbridge.cli.listings.plain import BROKEN_PIPE_EXIT_CODE
from kernelbridge.errors import FileFailed, KernelBridgeError

if TYPE_CHECKING:
    from kernelbridge.config.schema import Config, Host  # loads pydantic
    from kernelbridge.fleet.fleet import Fleet  # loads pydantic

UNEXPECTED_EXIT_CODE = 1
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE)


class Command(NamedTuple):
    """One command: where its function is, and what the help says of it."""

    module: str
    function: str
    help: str
    # Whether what follows the first argument is another command's: its options are not ours.
    runs_another: bool = False
    # Whether it is for programs, and no help names it.
    is_hidden: bool = False

    def load(self) -> Callable[..., None]:
        """Import the function, whose parameters are the command's options."""
        module = importlib.import_module(f"kernelbridge.cli.commands.{self.module}")
        found: Callable[..., None] = getattr(module, self.function)
        return found


# In the order of the help.
COMMANDS: Final[Mapping[str, Command]] = {
    "init": Command("setup.init", "init", "Begin: write a config for a host and an image, and its kernel spec."),
    "config": Command("setup.config", "show", "Check the config and print what is in force, defaults included."),
    "trust": Command("setup.trust", "trust", "Show a host's key, and remember it if you say so."),
    "doctor": Command("setup.doctor", "doctor", "Look at each link from here to a kernel, and say which is broken."),
    "report": Command(
        "setup.report", "report", "Collect what a bug report needs into one file, without secrets, to be read first."
    ),
    "install": Command(
        "setup.install",
        "install",
        "Write a kernel spec for each environment, and remove those of environments that are gone.",
    ),
    "uninstall": Command("setup.install", "uninstall", "Remove the kernel specs of this config, or of all."),
    "pull": Command(
        "images", "pull", "Have an environment's image on its hosts, with what is added to it, before it is needed."
    ),
    "ps": Command("kernels", "list_all", "List the kernels on all hosts."),
    "gpus": Command("gpus", "list_all", "List the GPUs of all hosts: who has them, who waits for one."),
    "stop": Command("kernels", "stop", "Stop kernels and remove their containers."),
    "logs": Command("kernels", "logs", "Print what a kernel process wrote to its stdout and stderr last."),
    "attach": Command(
        "attach",
        "attach",
        "Use a kernel that runs: prints its connection file, starts a console on it, leaves it running at the end.",
    ),
    "open": Command(
        "open", "open_lab", "Open JupyterLab in the browser: at a notebook, an environment or a kernel that runs."
    ),
    "run": Command("run", "run", "Run a command in an environment, in a container or job of its own.", True),
    "up": Command("run", "up", "Start an environment's container, which waits for shells and commands."),
    "shell": Command("terminal", "shell", "Open a shell in a kernel's container."),
    "exec": Command("terminal", "exec_command", "Run a command in a kernel's container.", True),
    "cp": Command("cp", "copy", "Copy files between this machine and a kernel's container."),
    "files": Command("files", "files", "Push, pull or compare a workspace's copy on a host, without a kernel."),
    "ssh-config": Command(
        "ssh", "write_config", "Let ssh, and editors that use it, reach into containers as `kb-NAME`."
    ),
    "ssh-proxy": Command("ssh", "proxy", "Carry one ssh connection into a container.", False, True),
    "forward": Command("ports", "forward", "Bring ports of a kernel's container to this machine, until Ctrl-C."),
    "tensorboard": Command(
        "ports",
        "tensorboard",
        "Run TensorBoard in a kernel's container and open it in the browser, until Ctrl-C.",
    ),
    "snapshot": Command(
        "images", "snapshot", "Make an image of a kernel's container as it is now, without its secrets."
    ),
    "images": Command("images", "list_all", "List the images on all hosts that kernelbridge made."),
    "clean": Command("clean", "clean", "Remove kernels of this machine that nobody holds and that are not to persist."),
}


@dataclass(kw_only=True)
class _Call:
    """One call of the command line, before it is known which command it is."""

    open_fleet: Callable[[Config, Sequence[Host]], Fleet]
    environ: Mapping[str, str]
    version: str
    # Its words, of which a log gets the command's name alone.
    arguments: Sequence[str]
    # What --debug says; set by _options.
    wants_traceback: bool = False

    def note(self, error: KernelBridgeError) -> None:
        """Write down an error that was told, for `kernelbridge report`."""
        self.note_text(f"{type(error).__name__} (exit {error.exit_code}): {error.logged}")

    def note_text(self, text: str) -> None:
        """Write down how the command failed."""
        # Here and not above: only a command that fails needs them.
        from kernelbridge.fleet import log_files
        from kernelbridge.kernel.records import default_folder

        command = next((word for word in self.arguments if word in COMMANDS), "kernelbridge")
        log_files.note_command(command, text, self.environ, default_folder())


def command_line(loaded: Collection[str] = tuple(COMMANDS)) -> typer.Typer:
    """Make the command line; the commands that are not in `loaded` have their help's line and no options."""
    made = typer.Typer(
        name="kernelbridge",
        no_args_is_help=True,
        epilog="`kernelbridge init` is where to begin.",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(_options)
    for name, command in COMMANDS.items():
        settings = {"allow_interspersed_args": not command.runs_another}
        made.command(name, help=command.help, context_settings=settings, hidden=command.is_hidden)(
            command.load() if name in loaded else _not_loaded
        )
    return made


def _not_loaded() -> None:
    raise AssertionError("a command is loaded if one of the arguments is its name")


def run(
    arguments: Sequence[str],
    *,
    open_fleet: Callable[[Config, Sequence[Host]], Fleet],
    environ: Mapping[str, str],
    version: str,
) -> int:
    """Carry out one call; returns the exit code. Every error ends as its sentence and its remedy on stderr."""
    call = _Call(open_fleet=open_fleet, environ=environ, version=version, arguments=arguments)
    code = 0
    try:
        # An argument that is no command may have a command's name: then one too many is loaded.
        # So has a word of a line that a shell asks about.
        command_line([*arguments, *_words_to_complete(environ)])(
            args=list(arguments), prog_name="kernelbridge", obj=call
        )
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
        # Nobody reads what is printed, as behind `| head`: typer ends without a word then.
        code = BROKEN_PIPE_EXIT_CODE if isinstance(end.__context__, BrokenPipeError) else code
    except KernelBridgeError as error:
        code = _complain_of(error, call)
    except Exception as error:  # The edge: whatever comes here is our bug, but for what a disk does.
        if (failed := _of_disk(error)) is not None:
            return _complain_of(failed, call)
        code = UNEXPECTED_EXIT_CODE
        output.complain(f"kernelbridge has a bug here: {type(error).__name__}: {error}")
        call.note_text(traceback.format_exc())
        if call.wants_traceback:
            typer.echo(traceback.format_exc(), err=True)
        else:
            output.complain("Run it again with `kernelbridge --debug ...` and send us what it prints.")
    return code


def _complain_of(error: KernelBridgeError, call: _Call) -> int:
    """Tell an error and write it down; return its exit code."""
    output.complain_of(error)
    call.note(error)
    if call.wants_traceback:
        typer.echo(traceback.format_exc(), err=True)
    return error.exit_code


def _of_disk(error: Exception) -> FileFailed | None:
    """Return the error for what this machine's disk refuses; None where that is not what failed."""
    if not isinstance(error, OSError):
        return None
    # What has no file's name and these numbers was a write.
    is_denied = isinstance(error, PermissionError) and error.filename is not None
    if error.errno not in _DISK_ERRORS and not is_denied:
        return None
    return FileFailed(path=str(error.filename or "a file"), reason=error.strerror or str(error))


def _words_to_complete(environ: Mapping[str, str]) -> list[str]:
    """Return the words of the line that a shell wants completed, by what its script sets; empty where none asks."""
    return f"{environ.get('COMP_WORDS', '')} {environ.get('_TYPER_COMPLETE_ARGS', '')}".split()


def _print_version(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        call: _Call = ctx.obj
        output.say(f"kernelbridge {call.version}")
        raise typer.Exit


def _options(
    ctx: typer.Context,
    config_path: Annotated[Path | None, typer.Option("--config", help="Use this config file.", metavar="PATH")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Notebook kernels in GPU containers on remote hosts."""
    # Here and not above: it reads the config, whose models take longer to load than all that the help needs.
    from kernelbridge.cli.context import CliContext

    call: _Call = ctx.obj
    call.wants_traceback = debug
    ctx.obj = CliContext(open_fleet=call.open_fleet, environ=call.environ, named_path=config_path, note=call.note)
