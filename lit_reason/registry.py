"""Find and load plugins: tasks, rewards and losses that distributions offer through entry points.

The groups are `lit_reason.tasks`, `lit_reason.rewards` and `lit_reason.losses`; the value of an entry point is
`package.module:Class`. The built-in plugins come through the same groups. Looking for a plugin reads metadata only;
loading one imports that one and no other, so that a broken plugin never disturbs a run that does not use it.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any, Literal, get_args

from lit_reason.types import UserError

Kind = Literal["task", "reward", "loss"]
KINDS: tuple[Kind, ...] = get_args(Kind)
GROUPS: dict[Kind, str] = {"task": "lit_reason.tasks", "reward": "lit_reason.rewards", "loss": "lit_reason.losses"}
_FUNCTIONS: dict[Kind, str] = {
    "reward": "lit_reason.rewards.function.FunctionReward",
    "loss": "lit_reason.losses.function.FunctionLoss",
}
BUILT_IN = "lit-reason"

# as text, because importing the base class of losses imports torch
_BASES: dict[Kind, str] = {
    "task": "lit_reason.task.Task",
    "reward": "lit_reason.reward.Reward",
    "loss": "lit_reason.loss.Loss",
}


class PluginError(UserError):
    """A plugin cannot be found, imported or built; the message names it and its distribution."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plugin:
    """One entry point, not imported yet.

    Attributes:
        kind: what it is.
        name: what a configuration calls it.
        value: where it lives, `package.module:Class`.
        distribution: who offers it, its name normalised.
        version: of the distribution.
        entry: the entry point.
    """

    kind: Kind
    name: str
    value: str
    distribution: str
    version: str
    entry: EntryPoint

    @property
    def built_in(self) -> bool:
        """Whether lit-reason itself brings it."""
        return self.distribution == BUILT_IN

    @property
    def full_name(self) -> str:
        """The name that is never ambiguous: `distribution/name`."""
        return f"{self.distribution}/{self.name}"

    def __str__(self) -> str:
        return f"{self.kind} '{self.name}' of {self.distribution} {self.version} ({self.value})"

    def load(self) -> Any:  # noqa: ANN401 - a class of one of three kinds, or a function
        """Import the plugin and check that it is what its group promises.

        Raises:
            PluginError: it cannot be imported, or is no plugin of this kind.
        """
        try:
            loaded = self.entry.load()
        except (Exception, SystemExit) as error:
            who = self.distribution
            lacking = isinstance(error, ModuleNotFoundError)
            advice = f"Install {who} with all that it depends on" if lacking else f"Mend or uninstall {who}"
            raise PluginError(f"{self} failed to import: {cause(error)}. {advice}") from error
        return checked(self.kind, loaded, str(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class Unreadable:
    """A distribution that seems to offer plugins, but whose entry points cannot be read."""

    distribution: str
    version: str
    cause: str


def normalised(distribution: str) -> str:
    """A distribution's name as package indexes compare them: `My_Plugin` and `my-plugin` are the same."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def cause(error: BaseException) -> str:
    """An exception as one line; `str` of a stranger's may raise."""
    try:
        text = " ".join(str(error).split())
    except BaseException:  # noqa: BLE001 - see above
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def installed(kind: Kind) -> dict[str, list[Plugin]]:
    """Plugins of a kind by name, built-in first, then by distribution. Reads metadata only."""
    found: dict[str, list[Plugin]] = {}
    for item in _scan(tuple(sys.path)):
        if isinstance(item, Plugin) and item.kind == kind:
            found.setdefault(item.name, []).append(item)
    for offers in found.values():
        offers.sort(key=lambda plugin: (not plugin.built_in, plugin.distribution))
    return dict(sorted(found.items()))


def unreadable() -> list[Unreadable]:
    """Distributions whose entry points cannot be read."""
    return [item for item in _scan(tuple(sys.path)) if isinstance(item, Unreadable)]


@functools.lru_cache(maxsize=2)
def _scan(path: tuple[str, ...]) -> tuple[Plugin | Unreadable, ...]:
    """Every plugin on `path`.

    One distribution at a time instead of `importlib.metadata.entry_points`, which raises for all of them when the
    metadata of one is damaged. A distribution found twice, as an editable installation can be, counts once: the first
    on the path is the one that imports.
    """
    seen: set[str] = set()
    items: list[Plugin | Unreadable] = []
    for distribution in distributions(path=list(path)):
        text = _read(distribution, "entry_points.txt")
        if not any(group in text for group in GROUPS.values()):
            continue
        name, version = _identity(distribution)
        if name in seen:
            continue
        seen.add(name)
        try:
            items += _offers(distribution, name, version)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a stranger's metadata is its own affair
            items.append(Unreadable(distribution=name, version=version, cause=cause(error)))
    return tuple(items)


def _offers(distribution: Distribution, name: str, version: str) -> list[Plugin]:
    kinds = {group: kind for kind, group in GROUPS.items()}
    offers: dict[tuple[Kind, str], Plugin] = {}
    for entry in distribution.entry_points:
        kind = kinds.get(entry.group)
        if kind is not None:
            plugin = Plugin(
                kind=kind, name=entry.name, value=entry.value, distribution=name, version=version, entry=entry
            )
            offers.setdefault((kind, entry.name), plugin)
    return list(offers.values())


def _read(distribution: Distribution, file: str) -> str:
    try:
        return distribution.read_text(file) or ""
    except (OSError, UnicodeDecodeError):
        return ""


def _identity(distribution: Distribution) -> tuple[str, str]:
    """Name and version, also when the metadata is too damaged to be parsed as such."""
    fields: dict[str, str] = {}
    for line in (_read(distribution, "METADATA") or _read(distribution, "PKG-INFO")).splitlines():
        if not line:  # the headers end here
            break
        key, _, value = line.partition(":")
        fields.setdefault(key.lower(), value.strip())
    return normalised(fields.get("name") or "unknown"), fields.get("version") or "unknown"


def find(kind: Kind, name: str) -> Plugin:
    """The installed plugin a configuration means by `name` or `distribution/name`.

    A built-in plugin cannot be shadowed: it wins its plain name.

    Raises:
        PluginError: there is none, or several distributions offer it.
    """
    found = installed(kind)
    owner, _, short = name.rpartition("/")
    offers = [p for p in found.get(short, []) if not owner or p.distribution == normalised(owner)]
    if not offers:
        raise PluginError(unknown(kind, name))
    if len(offers) > 1 and not offers[0].built_in:
        who = " and ".join(f"{p.distribution} {p.version}" for p in offers)
        choices = " or ".join(f"'{p.full_name}'" for p in offers)
        raise PluginError(f"{kind} '{name}' is offered by {who}: write {choices}")
    return offers[0]


def unknown(kind: Kind, name: str) -> str:
    """What to tell somebody who named a plugin that is not installed."""
    found = installed(kind)
    owner, _, short = name.rpartition("/")
    near = difflib.get_close_matches(short.lower(), found, 3)
    if owner:
        near = [plugin.full_name for close in near for plugin in found[close]]
    parts = [f"no {kind} named '{name}' is installed"]
    if near:
        parts.append("did you mean " + " or ".join(f"'{n}'" for n in near) + "?")
    parts += [f"'{short}' is a {other}" for other in KINDS if other != kind and short in installed(other)]
    parts.append(f"installed: {', '.join(found) or 'none'}")
    parts += [f"unreadable: {u.distribution} {u.version} ({u.cause})" for u in unreadable()]
    return "; ".join(parts).replace("?;", "?")


def load(kind: Kind, name: str) -> Any:  # noqa: ANN401 - a class of one of three kinds, or a function
    """Import what a configuration names: a plugin's name, `distribution/name` or a dotted import path.

    Returns:
        A subclass of `Task`, `Reward` or `Loss`; or a plain function, for rewards and losses.

    Raises:
        PluginError: one line that says what is wrong with which plugin.
    """
    if "." in name and "/" not in name and name not in installed(kind):
        return checked(kind, _import(kind, name), f"{kind} '{name}'")
    return find(kind, name).load()


def _import(kind: Kind, path: str) -> Any:  # noqa: ANN401 - whatever stands there
    """The object at a dotted import path."""
    module_name, _, attribute = path.rpartition(".")
    expected = "expected a dotted import path such as package.module.Class"
    if not all(part.isidentifier() for part in path.split(".")):
        raise PluginError(f"{kind} '{path}': {expected}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            raise PluginError(f"{kind} '{path}': there is no module '{error.name}'; {expected}") from error
        raise PluginError(f"{kind} '{path}': module '{module_name}' failed to import: {cause(error)}") from error
    except (Exception, SystemExit) as error:
        raise PluginError(f"{kind} '{path}': module '{module_name}' failed to import: {cause(error)}") from error
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, vars(module), 1)
        hint = f"; did you mean '{module_name}.{near[0]}'?" if near else ""
        raise PluginError(f"{kind} '{path}': module '{module_name}' has no '{attribute}'{hint}")
    return getattr(module, attribute)


def base(kind: Kind) -> type:
    """The base class of a kind; that of losses imports torch."""
    return _class(_BASES[kind])


def function_plugin(kind: Kind, function: Any) -> Any:  # noqa: ANN401 - a reward or a loss
    """A plugin that does what a plain function does; there are such for rewards and losses."""
    return _class(_FUNCTIONS[kind])(function)


def _class(path: str) -> type[Any]:
    module, _, attribute = path.rpartition(".")
    found: type[Any] = getattr(importlib.import_module(module), attribute)
    return found


def checked(kind: Kind, loaded: Any, who: str) -> Any:  # noqa: ANN401 - anything can stand behind a name
    """`loaded`, if it is a concrete subclass of the kind's base class, or a function for rewards and losses.

    Raises:
        PluginError: it is neither; the message starts with `who`.
    """
    expected = _BASES[kind]
    if not inspect.isclass(loaded):
        if inspect.isroutine(loaded) and kind in _FUNCTIONS:
            return loaded
        raise PluginError(f"{who} is {_article(type(loaded).__name__)}, expected a subclass of {expected}")
    if not issubclass(loaded, base(kind)):
        raise PluginError(f"{who} is not a subclass of {expected}")
    if inspect.isabstract(loaded):
        missing = ", ".join(f"'{m}'" for m in sorted(getattr(loaded, "__abstractmethods__", ())))
        raise PluginError(f"{who} does not implement {missing} of {expected}")
    return loaded


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def plugins() -> Iterator[Plugin]:
    """Every installed plugin, kind by kind and by name."""
    for kind in KINDS:
        for offers in installed(kind).values():
            yield from offers
