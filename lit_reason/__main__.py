"""`lit-reason`: routes a subcommand to its part, and imports nothing heavy for the light ones."""

from __future__ import annotations

import difflib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from lit_reason import __version__
from lit_reason.types import UserError

HELP = """\
lit-reason {version}: teach small language models to reason

  fit        train a policy             lit-reason fit --config configs/grpo.yaml
  validate   measure a policy           lit-reason validate --config runs/grpo/config.yaml --ckpt_path runs/grpo/checkpoints/best.ckpt
  test       the same, under that name  lit-reason test --config runs/grpo/config.yaml --ckpt_path runs/grpo/checkpoints/best.ckpt
  predict    write completions          lit-reason predict --config runs/grpo/config.yaml --ckpt_path runs/grpo/checkpoints/best.ckpt
  export     write a model folder       lit-reason export runs/grpo --to hf
  merge      average models             lit-reason merge runs/a/model runs/b/model --out soup
  plugins    list, show, check plugins  lit-reason plugins list

Options follow as --trainer.max_steps 100 or --model.group_size 4; --print_config shows them all with their values.
`lit-reason fit --help` explains them, `lit-reason fit --model.help GRPO` those of a model.
--version prints the version, --debug (or LIT_REASON_DEBUG=1) the traceback of an error.
--unsafe-code agrees to `sandbox: unsafe` in a config, which runs the model's programs without a sandbox.
"""  # noqa: E501 - a command is copied whole
TRAINING = ("fit", "validate", "test", "predict")
COMMANDS = (*TRAINING, "export", "merge", "plugins")
FLAGS = {"--debug": "LIT_REASON_DEBUG", "--unsafe-code": "LIT_REASON_UNSAFE_CODE"}
"""Options that may stand anywhere, of no subcommand, and the environment variables that say the same."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a disk without room, or a quota, says."""

INTERRUPTED = 130  # 128 + SIGINT, what shells report for a program that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments after the program's name; those of the process by default.

    Returns:
        The exit code: 0 done, 1 an error while running, 2 an error on the command line or in a config, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # text from models must not stop a run on a narrow encoding
    for flag, variable in FLAGS.items():
        if flag in arguments:
            arguments.remove(flag)
            os.environ[variable] = "1"  # and so do processes started by this one
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP.format(version=__version__), end="")
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"lit-reason {__version__}")
        return 0
    command = arguments[0]
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(COMMANDS)}"
        print(f"error: no subcommand '{command}': {hint}", file=sys.stderr)
        return 2
    return guarded(lambda: _route(command, arguments))


def guarded(run: Callable[[], int]) -> int:
    """Run something; a `UserError` becomes one line on stderr and exit code 1, Ctrl-C one line and 130."""
    try:
        return run()
    except UserError as error:
        if debugging():
            raise
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # `| head` has read enough; whatever is still buffered must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debugging():
            raise
        print(f"error: {_unexpected(error)}", file=sys.stderr)
        return 1


def _unexpected(error: Exception) -> str:
    """One line for an error nobody foresaw: what, where, and how to see more; `str` of a stranger's error may raise."""
    if isinstance(error, OSError) and error.errno in FULL:
        where = f" '{error.filename}'" if error.filename else ""
        return one_line(
            f"a file{where} could not be written: {error.strerror}. What was saved before is whole: make room; a run "
            "goes on with --resume"
        )
    if isinstance(error, OSError) and error.filename and error.strerror:
        return one_line(
            f"'{error.filename}': {error.strerror}. Check that it is what it should be, and that you may read and "
            "write there. --debug shows more"
        )
    try:
        text = str(error)[:500]
    except Exception:  # noqa: BLE001 - see above
        text = ""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return one_line(f"{type(error).__name__}: {text} ({frame.filename}, line {frame.lineno}). --debug shows more")


def debugging() -> bool:
    """Whether errors should show their traceback."""
    return os.environ.get("LIT_REASON_DEBUG", "") not in ("", "0")


def one_line(text: str) -> str:
    """Text with its line breaks and runs of spaces folded, and without what terminals take for commands."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _route(command: str, arguments: list[str]) -> int:
    """Hand over to a subcommand's part; only what it needs is imported."""
    if command == "plugins":
        from lit_reason.plugin_commands import main as plugins

        return plugins(arguments[1:])
    if command == "export":
        from lit_reason.export import main as export

        return export(arguments[1:])
    if command == "merge":
        from lit_reason.merge import main as merge

        return merge(arguments[1:])
    from lit_reason.cli import run  # torch and Lightning take seconds

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
