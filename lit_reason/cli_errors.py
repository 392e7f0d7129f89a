"""Errors of the command line and of configs, boiled down to one line each.

jsonargparse reports a wrong value deep in a config as a tree: for every level the key, then each type of a union with
what it had against the value. `boil_down` walks to the branch that says why; `explain` adds where in the config it
stands, and what was probably meant.
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from lit_reason.__main__ import debugging, one_line
from lit_reason.types import UserError

SECTIONS_HINT = "write it as {class_path: GRPO, init_args: {option: value}}"
CLASS_POOLS = (
    "lit_reason",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "torch.optim",
    "torch.optim.lr_scheduler",
)
"""Modules whose classes a config names most; where suggestions for a misspelt class come from."""


@dataclass(kw_only=True)
class Cause:
    """Why a configuration was refused.

    Attributes:
        keys: the option, level by level, as far as the message tells.
        text: what was expected.
        unknown: the option that does not exist, when that is the cause.
        owner: import path of the class the option belongs to, when the message tells.
        within: the last of `keys`, those that lie inside `owner`.
    """

    keys: list[str] = field(default_factory=list)
    text: str = ""
    unknown: str | None = None
    owner: str | None = None
    within: list[str] = field(default_factory=list)


class OneLineParser(LightningArgumentParser):
    """A parser whose errors are one line on stderr and exit code 2, without the usage in front.

    Attributes:
        arguments: of this command, for saying where an option stands.
        folder: that relative paths among them are relative to; while it parses a config, jsonargparse works in the
            config's own.
    """

    arguments: Sequence[str] = ()
    folder: Path = Path()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error or debugging():
            super().error(message, ex)
        sys.stderr.write(f"error: {explain(message, self)}\n")
        self.exit(2)
        raise AssertionError  # `exit` never returns, but is not annotated so


def config_files(arguments: Sequence[str]) -> list[str]:
    """Paths given to `--config`, in order."""
    paths = []
    for position, argument in enumerate(arguments):
        if argument in ("-c", "--config") and position + 1 < len(arguments):
            paths.append(arguments[position + 1])
        elif argument.startswith(("--config=", "-c=")):
            paths.append(argument.partition("=")[2])
    return paths


def check_configs(paths: Sequence[str]) -> None:
    """Read config files once before the real parser does, whose complaints name neither file nor line.

    Raises:
        UserError: a file is missing, is no YAML, or is no mapping.
    """
    for path in paths:
        if "://" in path:
            continue
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"--config: cannot read '{path}': {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"--config: '{path}' is no text file: expected YAML") from error
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f":{mark.line + 1}" if mark else ""
            raise UserError(f"{path}{line}: invalid YAML: {error.problem or error.context}") from error
        except yaml.YAMLError as error:
            raise UserError(f"{path}: invalid YAML: {one_line(str(error))}") from error
        except RecursionError as error:
            raise UserError(f"{path}: invalid YAML: nested too deeply") from error
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{path}: expected a mapping with the keys model, data and trainer")
        if circle := _cycle(node, [], set()):
            raise UserError(f"{path}:{circle}: an alias stands inside what it stands for; write the value out")


def _cycle(node: yaml.Node, above: list[yaml.Node], done: set[int]) -> int:
    """Line of a node that contains itself through an alias, which parsers follow for ever; 0 when there is none."""
    if any(node is outer for outer in above):
        return node.start_mark.line + 1
    if id(node) in done or isinstance(node, yaml.ScalarNode):
        return 0
    pairs = node.value if isinstance(node, yaml.MappingNode) else [(item,) for item in node.value]
    line = max((_cycle(child, [*above, node], done) for pair in pairs for child in pair), default=0)
    done.add(id(node))
    return line


def explain(message: str, parser: OneLineParser) -> str:
    """One line for a message of jsonargparse: where, what is wrong, what was probably meant."""
    missing = re.fullmatch(r"the following arguments are required: (.+)", message)
    if missing:
        names = [re.sub(r"^(fit|validate|test|predict)\.", "", name) for name in missing[1].split(", ")]
        return f"missing {' and '.join(f'--{name}' for name in names)}: give them, or a config with --config FILE"
    cause = boil_down(message)
    path = [part for key in cause.keys for part in key.split(".")]
    if cause.unknown is not None:
        path += cause.unknown.split(".")
        known = _options(parser)
        if cause.owner is None and path[0] not in _first_parts(known):
            path = path[:1]
            cause.text = f"there is no option '{path[0]}'{_meant(path[0], _first_parts(known))}"
        elif cause.owner is None:
            cause.text = f"there is no option '{'.'.join(path)}'{_meant('.'.join(path), known)}"
        else:
            above = cause.keys[: len(cause.keys) - len(cause.within)]
            inside = ".".join([*cause.within, cause.unknown])
            known = _options_of(cause.owner)
            cause.text = f"there is no option '{'.'.join(path)}'{_meant(inside, known, '.'.join([*above, '']))}"
    elif path:
        cause.text = f"{'.'.join(path)}: {cause.text}"
    return one_line(_place(parser, path) + cause.text)


def boil_down(message: str) -> Cause:
    """Follow a message down to its cause."""
    # an option that may also be given as a file lists that first, and then the error that matters
    text = re.sub(r"^ *- Expected a path but .*\n", "", message.strip("\n"), flags=re.MULTILINE).strip()
    text = re.sub(r"^- (?=Does not validate)", "", text)
    for pattern, kind in _PATTERNS:
        match = re.match(pattern, text, re.DOTALL)
        if match:
            return kind(match)
    entries = list(_entries(text))
    if entries:
        return _best(entries, text)
    return Cause(text=text)


def cause_of(error: BaseException) -> UserError | None:
    """The `UserError` that jsonargparse wrapped while it built the objects, if that is what happened."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


# ---------------------------------------------------------------------- the messages of jsonargparse
def _key(match: re.Match[str]) -> Cause:
    cause = boil_down(match[2])
    if cause.keys[:1] != [match[1]]:  # a section names itself twice
        cause.keys.insert(0, match[1])
    return cause


def _class(match: re.Match[str]) -> Cause:
    cause = boil_down(match[2])
    if cause.owner is None:
        cause.owner, cause.within = match[1], list(cause.keys)
    return cause


def _factory(match: re.Match[str]) -> Cause:
    """A class whose remaining arguments are given later, such as an optimizer; the message names it last."""
    cause = boil_down(match[1])
    if cause.owner is None:
        cause.owner, cause.within = match[2], list(cause.keys)
    return cause


def _unrecognized(match: re.Match[str]) -> Cause:
    first = match[1].split()[0]
    if not first.startswith("-"):
        return Cause(text=f"unexpected argument '{first}'; options start with --")
    return Cause(unknown=re.split(r"[=+]", first.lstrip("-"))[0])


def _wrong_type(match: re.Match[str]) -> Cause:
    return _expected([match[1]], match[2].strip())


def _expected(types: Sequence[str], value: str) -> Cause:
    """What was expected, and how to write one thing where a list is."""
    shown = list(dict.fromkeys(map(_nice, types)))
    hint = f"; write '[{value}]'" if "a list" in shown and re.fullmatch(r"[\w./-]+", value) else ""
    return Cause(text=f"expected {' or '.join(shown)}, got {value!r}{hint}")


_PATTERNS: tuple[tuple[str, Callable[[re.Match[str]], Cause]], ...] = (
    (r'Parser key "([^"]+)":\s*(.*)', _key),
    (r"Problems? with given class_path '([^']+)':\s*(.*)", _class),
    (
        (
            r"Type \S+(?:\[.*?\])?\S* expects a function or a callable class: (.*)\. "
            r"Got value: Namespace\(class_path='([^']+)'"
        ),
        _factory,
    ),
    (r"Not of type \w+: (.*)", lambda m: Cause(text=m[1])),
    (r"Group '([^']+)' does not accept option '([^']+)'", lambda m: Cause(keys=[m[1]], unknown=m[2])),
    (r"Subcommand '\w+' does not accept option '([^']+)'", lambda m: Cause(unknown=m[1])),
    (r"Option '([^']+)' is not accepted", lambda m: Cause(unknown=m[1])),
    (r"unrecognized arguments: (.*)", _unrecognized),
    (r"Expected a dot import path string: (\S+)", lambda m: Cause(text=_no_class(m[1]))),
    (r"Expected an instantiatable class, but .*", lambda _: Cause(text=SECTIONS_HINT)),
    (r"Not a valid subclass of .*", lambda _: Cause(text=SECTIONS_HINT)),
    (r"Expected an? (.+?)\. Got value: (.*)", _wrong_type),
)
_DULL = ("Expected a <class 'NoneType'>", "Expected a path but", "Not a valid subclass", "Expected a <class 'list'>")


def _entries(text: str) -> Iterator[str]:
    """The items of a bulleted list, their own indentation removed; nothing but a list is looked for."""
    bullets = list(re.finditer(r"^( *)- ", text, re.MULTILINE))
    if not bullets:
        return
    indent = min(len(bullet[1]) for bullet in bullets)
    starts = [bullet for bullet in bullets if len(bullet[1]) == indent]
    for start, following in zip(starts, [*starts[1:], None], strict=True):
        item = text[start.end() : following.start() if following else len(text)]
        # the list's own footer stands no deeper than its bullets
        item = re.split(rf"\n {{0,{indent}}}(?=(?:Given value|Subtypes|Errors)\b)", item)[0]
        yield item.strip()


def _best(entries: list[str], text: str) -> Cause:
    """The entry that tells most: a problem inside a class, then anything that is no mere "not that type"."""
    for entry in entries:
        if entry.startswith("Problem"):
            return boil_down(entry)
    nested = [entry for entry in entries if re.search(r"^ *- ", entry, re.MULTILINE) and "Not a valid" not in entry]
    if nested:
        return boil_down(nested[0])
    types = [
        match[1] for entry in entries if (match := re.fullmatch(r"Expected an? (<class '[^']+'>|\S+\[.*\])", entry))
    ]
    value = re.search(r"Given value: (.*)", text, re.DOTALL)
    telling = [
        entry
        for entry in entries
        if not entry.startswith(_DULL) and not re.fullmatch(r"Expected an? <class '.*'>", entry)
    ]
    known_type = any("NoneType" not in name for name in types)
    if telling and not known_type:
        return boil_down(telling[0])
    shapeless = [entry for entry in entries if entry.startswith("Not a valid subclass")]
    if shapeless and not known_type:
        return boil_down(shapeless[0])
    if types and value:
        return _expected(sorted(types, key=lambda name: "NoneType" in name), value[1].strip())
    return boil_down((telling or entries)[0])


def _nice(name: str) -> str:
    """A type as a person would write it."""
    choices = re.fullmatch(r"typing\.Literal\[(.*)\]", name)
    if choices:
        return "one of " + ", ".join(choice.strip("'\" ") for choice in choices[1].split(","))
    name = re.sub(r"<class '([^']+)'>", r"\1", name)
    name = re.sub(r"(?:\w+\.)+(\w+)", r"\1", name)
    words = {"NoneType": "null", "Sequence": "a list", "list": "a list", "dict": "a mapping", "bool": "true or false"}
    return words.get(name, name)


# ---------------------------------------------------------------------- suggestions and places
def _no_class(name: str) -> str:
    near = difflib.get_close_matches(name, list(_class_names()), 1, cutoff=0.5)
    return f"there is no class '{name}'" + (f"; did you mean '{near[0]}'?" if near else "; give its dotted import path")


def _class_names() -> Iterator[str]:
    for pool in CLASS_POOLS:
        module = importlib.import_module(pool)
        yield from getattr(module, "__all__", None) or (name for name in vars(module) if name[:1].isupper())


def _meant(unknown: str, known: Sequence[str], prefix: str = "") -> str:
    """`; did you mean ...?` for an unknown option, or which there are when nothing is near.

    Args:
        unknown: the option, dotted.
        known: the options there are, dotted.
        prefix: what to put before a suggestion.
    """
    level, _, leaf = unknown.rpartition(".")
    stem = f"{level}." if level else ""
    siblings = _first_parts(name.removeprefix(stem) for name in known if name.startswith(stem))
    near = [f"{stem}{name}" for name in difflib.get_close_matches(leaf, siblings, 1)]
    near = near or [name for name in known if name.rpartition(".")[2] == leaf]  # right name, wrong place
    if near:
        return f"; did you mean '{prefix}{near[0]}'?"
    return f"; there are {', '.join(siblings)}" if siblings else ""


def _first_parts(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def _options_of(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(getattr(importlib.import_module(module), name), fail_untyped=False)
    return _options(parser)


def _options(parser: ArgumentParser) -> list[str]:
    """Every option a parser, or one of its subcommands, knows by itself."""
    names = [action.dest for action in parser._actions if action.dest not in ("help", "subcommand")]  # noqa: SLF001 - argparse lists its options nowhere else
    subcommands = parser._subcommands_action  # noqa: SLF001 - likewise
    if subcommands is not None:
        names += [name for sub in subcommands._name_parser_map.values() for name in _options(sub)]  # noqa: SLF001
    return list(dict.fromkeys(names))


def _place(parser: OneLineParser, path: Sequence[str]) -> str:
    """`file:line: ` of the option in the last config that sets it; empty when the command line does, or none."""
    option = "--" + ".".join(path)
    if not path or any(argument.replace(".init_args", "").startswith(option) for argument in parser.arguments):
        return ""
    for file in reversed(config_files(parser.arguments)):
        if "://" not in file:
            line = _line(yaml.compose((parser.folder / file).read_text(encoding="utf-8"), Loader=yaml.SafeLoader), path)
            if line:
                return f"{file}:{line}: "
    return ""


def _line(node: yaml.Node | None, path: Sequence[str]) -> int:
    """Line of an option below a node, 0 when it is not there; `init_args` on the way go without saying."""
    if isinstance(node, yaml.SequenceNode):
        return max((_line(item, path) for item in node.value), default=0)
    if not isinstance(node, yaml.MappingNode):
        return 0
    entries = {key.value: (key.start_mark.line + 1, value) for key, value in node.value}
    if path[0] in entries:
        line, value = entries[path[0]]
        return _line(value, path[1:]) if len(path) > 1 else line
    return _line(entries["init_args"][1], path) if "init_args" in entries else 0
