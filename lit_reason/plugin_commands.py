"""`lit-reason plugins list | show | check`: what is installed, what it does, whether it works.

`list` and `show` read metadata and source text only: they answer at once, import neither torch nor any plugin, and so
also describe plugins that are broken. `check` imports each plugin and runs the conformance checks of
`lit_reason.testing`.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import textwrap
from typing import Any, NoReturn

from lit_reason.plugin_source import Option, describe
from lit_reason.registry import Plugin, PluginError, cause, installed, normalised, plugins, unreadable
from lit_reason.types import UserError

OK, BROKEN, USAGE = 0, 1, 2
_LIMITS = ("deadline", "on_timeout", "memory_mb")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"error: {message}; see '{self.prog} --help'\n")


def main(argv: list[str]) -> int:
    """Run `lit-reason plugins` with the arguments after `plugins`.

    Returns:
        The exit code: 0 fine, 1 a checked plugin is broken, 2 no plugin has the name.
    """
    parser = _Parser(prog="lit-reason plugins", description="Find, describe and check tasks, rewards and losses.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|show|check")
    listing = commands.add_parser("list", help="what is installed, and who brings it")
    listing.add_argument("--json", action="store_true", help="as a JSON array")
    showing = commands.add_parser("show", help="what a plugin does and which options it takes")
    showing.add_argument("names", nargs=1, metavar="name", help="as in a configuration: name or distribution/name")
    checking = commands.add_parser("check", help="import plugins and run the conformance checks on them")
    checking.add_argument("names", nargs="*", metavar="name", help="only these; default: all")
    checking.add_argument("--all", action="store_true", help="all, as without names")
    arguments = parser.parse_args(argv)
    if arguments.command == "list":
        return _list(as_json=arguments.json)
    if arguments.names and getattr(arguments, "all", False):
        checking.error("give names or --all, not both")
    for name in arguments.names:
        if not _named(name):
            print(f"error: {_unknown(name)}", file=sys.stderr)
            return USAGE
    chosen = [plugin for name in arguments.names for plugin in _named(name)] or list(plugins())
    if arguments.command == "show":
        print("\n\n".join(_shown(plugin) for plugin in chosen))
        return OK
    return _check(chosen)


def _named(name: str) -> list[Plugin]:
    owner, _, short = name.rpartition("/")
    return [p for p in plugins() if p.name == short and (not owner or p.distribution == normalised(owner))]


def _unknown(name: str) -> str:
    owner, _, short = name.rpartition("/")
    near = difflib.get_close_matches(short.lower(), sorted({p.name for p in plugins()}), 2)
    if owner:
        near = [p.full_name for close in near for p in _named(close)]
    hint = "did you mean " + " or ".join(f"'{n}'" for n in near) + "?" if near else "see 'lit-reason plugins list'"
    return f"no plugin named '{name}' is installed; {hint}"


def _written(plugin: Plugin) -> str:
    """What a configuration has to write to get this very plugin."""
    offers = installed(plugin.kind)[plugin.name]
    plain = len(offers) == 1 or plugin.built_in
    return plugin.name if plain else plugin.full_name


def _note(plugin: Plugin) -> str:
    """Why the plain name does not mean this plugin, "" when it does."""
    if _written(plugin) == plugin.name:
        return ""
    offers = installed(plugin.kind)[plugin.name]
    if offers[0].built_in:
        return f"'{plugin.name}' is the built-in one"
    others = ", ".join(p.distribution for p in offers if p is not plugin)
    return f"'{plugin.name}' is also offered by {others}"


def _list(*, as_json: bool) -> int:
    rows = [_row(plugin) for plugin in plugins()]
    if as_json:
        print(json.dumps(rows, indent=2))
        return OK
    columns = [[row["kind"], row["write"], f"{row['distribution']} {row['version']}"] for row in rows]
    widths = [max(map(len, column)) for column in zip(*columns, strict=True)] if columns else []
    for row, cells in zip(rows, columns, strict=True):
        aligned = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        note = f" ({row['note']})" if row["note"] else ""
        print(f"{aligned}  {row['purpose']}{note}".rstrip())
    for broken in unreadable():
        print(f"unreadable: {broken.distribution} {broken.version}: {broken.cause}")
    return OK


def _row(plugin: Plugin) -> dict[str, Any]:
    return {
        "kind": plugin.kind,
        "name": plugin.name,
        "write": _written(plugin),
        "distribution": plugin.distribution,
        "version": plugin.version,
        "value": plugin.value,
        "purpose": describe(plugin.value).purpose,
        "note": _note(plugin),
    }


def _shown(plugin: Plugin) -> str:
    description = describe(plugin.value)
    note = _note(plugin)
    lines = [f"{plugin.kind} '{_written(plugin)}'" + (f" ({note})" if note else "")]
    lines.append(f"  from    {plugin.distribution} {plugin.version}, {plugin.value}")
    lines.append(f"  source  {description.file or 'not found'}")
    if plugin.kind == "reward":
        limits = {name: text for name, text in description.attributes.items() if name in _LIMITS and text != "None"}
        lines.append("  limits  " + (", ".join(f"{name} = {text}" for name, text in limits.items()) or "none"))
    if description.doc:
        lines += ["", textwrap.indent(description.doc, "  ")]
    options = list(description.options)
    if plugin.kind == "reward":
        weight = "what the reward counts for in the sum; negative for a penalty, 0 to measure only."
        options.append(
            Option(name="weight", type="float", default=description.attributes.get("default_weight", "1.0"), doc=weight)
        )
    lines += ["", "  options" if options else "  no options"]
    for option in options:
        annotation = f": {option.type}" if option.type else ""
        default = " (required)" if option.default is None else f" = {option.default}"
        lines.append(f"    {option.name}{annotation}{default}")
        lines += textwrap.wrap(option.doc, 112, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines)


def _check(chosen: list[Plugin]) -> int:
    """One line a plugin: ok, or broken and why."""
    for item in unreadable():
        print(f"broken  {item.distribution} {item.version}: its entry points cannot be read: {item.cause}")
    if unreadable():  # torch reads all entry points while it is imported, and fails on these
        print("nothing else was checked: reinstall or uninstall it first")
        return BROKEN
    broken = 0
    for plugin in chosen:
        complaint, remark = _examined(plugin)
        broken += bool(complaint)
        verdict = f"broken  {plugin}: {complaint}" if complaint else f"ok      {plugin}{remark}"
        print(verdict, flush=True)
    return BROKEN if broken else OK


def _examined(plugin: Plugin) -> tuple[str, str]:
    """What is wrong with a plugin, "" for nothing; and a remark on how far it could be examined."""
    from lit_reason.plugins import LossRef, RewardRef, TaskRef
    from lit_reason.testing import check_loss, check_reward, check_task

    try:
        plugin.load()
        if plugin.kind == "task":
            check_task(TaskRef.of(plugin.full_name).build())
        elif plugin.kind == "reward":
            check_reward(RewardRef.of(plugin.full_name).build())
        else:
            check_loss(LossRef.of(plugin.full_name).build())
    except PluginError as error:
        return str(error).removeprefix(f"{plugin} "), ""
    except UserError as error:  # the plugin works, and asks for options that only its user knows
        return "", f"; imports, not run: {error}"
    except AssertionError as error:
        return " ".join(str(error).split()), ""
    except Exception as error:  # noqa: BLE001 - one plugin must not end the check of the others
        return cause(error), ""
    return "", ""
