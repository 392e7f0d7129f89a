"""Name a plugin in a configuration: `TaskRef`, `RewardRef` and `LossRef`.

In YAML a plugin is a name, a name with options, or a dotted import path:

    rewards:
      - accuracy
      - format: {strict: true, weight: 0.15}
      - my_package.rewards.Politeness: {lexicon: words.txt}

The options are checked against the plugin's own signature while the configuration is parsed, long before a model is
loaded; `dump` gives plain YAML again, so that saved configurations and checkpoints rebuild the plugin; `build` makes
the object. How names are found is `lit_reason.registry`'s part.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import register_type

from lit_reason.registry import Kind, PluginError, base, cause, checked, find, function_plugin, load
from lit_reason.types import Rollout, UserError

if TYPE_CHECKING:
    from lit_reason.loss import Loss  # noqa: F401 - the base class of LossRef names it, as text
    from lit_reason.reward import Reward, Verdict
    from lit_reason.task import Task

T = TypeVar("T")


class PluginRef(Generic[T]):
    """A plugin and its options. Making one loads nothing; `check` and `build` do.

    Args:
        target: a plugin's name, `distribution/name` or a dotted import path; in Python also a class, a function (for
            rewards and losses), or a ready-made object.
        options: keyword arguments of the plugin.

    Attributes:
        name: what logs and error messages call it.
        options: as given, defaults not filled in.
    """

    kind: ClassVar[Kind]
    reserved: ClassVar[frozenset[str]] = frozenset()
    """Options that are the reference's own, which a plugin cannot have."""

    def __init__(self, target: Any, /, **options: Any) -> None:  # noqa: ANN401 - see `target` and the plugin's options
        self.target = target
        self.options = options
        self.name: str = target if isinstance(target, str) else getattr(target, "__name__", type(target).__name__)

    @classmethod
    def of(cls, value: Any) -> Self:  # noqa: ANN401 - see below
        """A checked reference from whatever a person may pass.

        Args:
            value: a reference, a name, {name: {option: value}}, a class, a ready-made object, or a function.

        Raises:
            UserError: it is none of these, or its options are wrong.
        """
        if isinstance(value, PluginRef) and not isinstance(value, cls):
            raise UserError(f"expected a {cls.kind}, got the {value.kind} '{value.name}'")
        if isinstance(value, cls):
            ref = value
        elif isinstance(value, Mapping):
            ref = cls._of_mapping(value)
        else:
            ref = cls(value)
        ref.check()
        return ref

    @classmethod
    def _of_mapping(cls, value: Mapping[Any, Any]) -> Self:
        if len(value) != 1:
            shown = ", ".join(map(str, value)) or "nothing"
            raise UserError(
                f"a {cls.kind} is written as its name or as {{name: {{option: value}}}}; got a mapping of {shown}. "
                "Indent the options below the name, and give each plugin an entry of its own"
            )
        ((name, options),) = value.items()
        options = {} if options is None else options
        if (
            not isinstance(name, str)
            or not isinstance(options, Mapping)
            or not all(isinstance(o, str) for o in options)
        ):
            raise UserError(f"{cls.kind} '{name}': expected options as a mapping {{option: value}}, got {options!r}")
        return cls(name, **options)

    @classmethod
    def read(cls, value: Any) -> Self:  # noqa: ANN401 - YAML can hold anything
        """What YAML says: a name, or {name: {option: value}}.

        Raises:
            UserError: it says something else, the plugin is unknown or broken, or its options are wrong.
        """
        if hasattr(value, "key") and hasattr(value, "val"):  # jsonargparse's form of --data.task.NAME.OPTION VALUE
            raise UserError(
                f"options of a {cls.kind} are not set one by one; write the {cls.kind} whole, as in "
                f"'{{NAME: {{OPTION: {value.val}}}}}'"
            )
        if not isinstance(value, str | Mapping | PluginRef):
            raise UserError(f"a {cls.kind} is written as its name or as {{name: {{option: value}}}}, got {value!r}")
        return cls.of(value)

    def dump(self) -> Any:  # noqa: ANN401 - a string or a mapping
        """Plain YAML that `read` turns into the same reference, the options' defaults filled in.

        Raises:
            UserError: the plugin is an object or a local function, which a configuration cannot name.
        """
        options = self._dumped_options()
        return {self._path(): options} if options else self._path()

    def build(self) -> T:
        """The plugin itself, made anew at each call.

        Raises:
            UserError: as `check`, or because the plugin refuses its options.
        """
        loaded = self._load()
        if isinstance(loaded, base(self.kind)):
            ready: T = loaded  # type: ignore[assignment]  # `base` is looked up by name, out of mypy's sight
            return ready
        if not isinstance(loaded, type):
            wrapped: T = function_plugin(self.kind, loaded)
            return wrapped
        parser, options = self._parsed(loaded)
        try:
            built: T = parser.instantiate(options).plugin if _keys(parser) else loaded()
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(f"{self._who()} could not be built: {cause(error)}") from error
        return built

    def check(self) -> None:
        """Load the plugin's class and hold the options against its signature.

        Raises:
            UserError: one line that says what is wrong with which plugin or option.
        """
        loaded = self._load()
        if isinstance(loaded, type):
            self._parsed(loaded)
        elif self.options:
            raise UserError(f"{self._who()} takes no options, got {', '.join(map(repr, self.options))}")

    def _load(self) -> Any:  # noqa: ANN401 - a class, a function or an object
        if isinstance(self.target, str):
            return load(self.kind, self.target)
        if isinstance(self.target, base(self.kind)):
            return self.target
        if isinstance(self.target, type) or callable(self.target):
            return checked(self.kind, self.target, f"{self.kind} '{self.name}'")
        raise UserError(
            f"expected a {self.kind}: its name, {{name: {{option: value}}}}, a class or an object; got {self.target!r}"
        )

    def _parsed(self, loaded: type) -> tuple[ArgumentParser, Namespace]:
        """The options, checked and with defaults, and the parser that knows their types."""
        parser = ArgumentParser(exit_on_error=False)
        # an option without annotation accepts anything: the author's choice, and no reason to stop a run
        parser.add_class_arguments(loaded, "plugin", fail_untyped=False)
        known = _keys(parser)
        for option in self.reserved.intersection(known):
            raise PluginError(
                f"{self._who()} has an option '{option}', a name kept for the configuration itself: rename it"
            )
        for option in self.options:
            if option not in known:
                raise UserError(self._unknown_option(option, [*known, *sorted(self.reserved)]))
        required = [action.dest.removeprefix("plugin.") for action in parser._actions if action.required]  # noqa: SLF001 - argparse lists its options nowhere else
        if missing := [option for option in required if option not in self.options]:  # --print_config asks for no value
            raise UserError(self._missing_options(missing))
        try:
            return parser, parser.parse_object({"plugin": self.options} if known else {})
        except (ArgumentError, TypeError, ValueError) as error:
            raise UserError(f"{self._who()} {_boiled_down(error)}") from error

    def _missing_options(self, missing: list[str]) -> str:
        names = " and ".join(f"'{option}'" for option in missing)
        example = ", ".join(f"{option}: ..." for option in missing)
        return f"{self._who()} needs the option{'s'[: len(missing) - 1]} {names}: {{{self.name}: {{{example}}}}}"

    def _unknown_option(self, option: str, known: list[str]) -> str:
        near = difflib.get_close_matches(option, known, 1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return f"{self._who()} has no option '{option}'; {hint}its options: {', '.join(known) or 'none'}"

    def _who(self) -> str:
        """The plugin with its distribution, where it has one."""
        if isinstance(self.target, str):
            try:
                plugin = find(self.kind, self.target)
            except PluginError:  # a dotted path
                return f"{self.kind} '{self.name}'"
            if not plugin.built_in:
                return f"{self.kind} '{self.name}' ({plugin.distribution} {plugin.version})"
        return f"{self.kind} '{self.name}'"

    def _path(self) -> str:
        """How a configuration names the plugin."""
        if isinstance(self.target, str):
            return self.target
        module, name = getattr(self.target, "__module__", None), getattr(self.target, "__qualname__", None)
        if not module or not name or not name.isidentifier():
            raise UserError(
                f"{self.kind} '{self.name}' was given as an object, which a configuration cannot name; to save the "
                "configuration of this run, put its class or function at the top level of a module"
            )
        return f"{module}.{name}"

    def _dumped_options(self) -> dict[str, Any]:
        loaded = self._load()
        if not isinstance(loaded, type):
            return {}
        parser, options = self._parsed(loaded)
        plain: dict[str, Any] = json.loads(parser.dump(options, format="json", skip_unset=False)).get("plugin") or {}
        return plain

    def __str__(self) -> str:
        return f"{{{self.name}: {self.options}}}" if self.options else self.name

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((self.kind, self.name))

    def __repr__(self) -> str:
        options = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"{type(self).__name__}({self.name!r}{options})"


_KEY = r'Parser key "plugin\.([^"]*)": '
_WORDINGS = (
    (r"the following arguments are required: plugin\.(.*)", "needs the option '{0}'"),
    (r"Group 'plugin' does not accept option '([^']*)'", "has no option '{0}'"),
    (_KEY + r".*?Not of type \w+Ref: (.*?)(?: - Expected an? .*)?", "option '{0}': {1}"),
    (_KEY + r"Expected an? (.*?)\. Got value: (.*)", "option '{0}' expected {1}, got {2}"),
    (_KEY + r".*?Subtypes: \[(.*?)\] Errors: .* Given value: (.*)", "option '{0}' expected {1}, got {2}"),
    (_KEY + r"(.*)", "option '{0}': {1}"),
    (r"(.*)", "refuses its options: {0}"),
)
"""What jsonargparse says, as one line, and what to say instead."""


def _boiled_down(error: Exception) -> str:
    """What jsonargparse says about an option, over several lines and in its own terms, as half a sentence."""
    text = " ".join(str(error).split())
    match, wording = next((m, w) for pattern, w in _WORDINGS if (m := re.fullmatch(pattern, text)))
    # types as one writes them, a union with "or": [<class 'int'>, <class 'NoneType'>] is "int or null"
    parts = [re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", part) for part in match.groups()]
    parts = [part.replace(", plugin.", "' and '") for part in parts]  # several that are required
    if "expected" in wording:
        parts[1] = " or ".join(re.split(r", (?![^\[]*\])", parts[1])).replace("typing.", "").replace("NoneType", "null")
    return wording.format(*parts)


def _keys(parser: ArgumentParser) -> list[str]:
    """Options of the plugin that `parser` was made for."""
    defaults = parser.get_defaults().get("plugin")
    return [] if defaults is None else list(vars(defaults))


class TaskRef(PluginRef["Task"]):
    """A task and its options."""

    kind = "task"

    def build(self) -> Task:
        """The task, which calls itself by the name the configuration uses unless it knows better."""
        task = super().build()
        task.name = task.name or self.name
        return task


class RewardRef(PluginRef["Reward"]):
    """A reward, its options and its weight.

    Args:
        target: as for every plugin; a function takes a `Rollout` and returns a number, or None where it does not apply.
        weight: what the reward counts for in the sum; negative for a penalty, 0 to measure only. None takes the
            reward's own `default_weight`, 1 unless it says otherwise.
        options: keyword arguments of the reward.
    """

    kind = "reward"
    reserved = frozenset({"weight"})

    def __init__(
        self,
        target: str | type[Reward] | Reward | Callable[[Rollout], Verdict | Awaitable[Verdict]],
        /,
        *,
        weight: float | None = None,
        **options: Any,  # noqa: ANN401 - whatever the plugin takes
    ) -> None:
        super().__init__(target, **options)
        self.given_weight = weight

    @property
    def weight(self) -> float:
        """What the reward counts for; loads the reward when the configuration leaves it to it."""
        if self.given_weight is not None:
            return self.given_weight
        weight: float = getattr(self._load(), "default_weight", 1.0)
        return weight

    def check(self) -> None:
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float) or not math.isfinite(self.weight):
            raise UserError(f"reward '{self.name}': weight must be a finite number, got {self.weight!r}")
        super().check()

    def dump(self) -> Any:  # noqa: ANN401 - a mapping
        return {self._path(): {**self._dumped_options(), "weight": float(self.weight)}}

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, weight={self.given_weight!r})"


class LossRef(PluginRef["Loss"]):
    """A loss and its options. Loading one imports torch; making a reference does not.

    Args:
        target: as for every plugin; a function takes `LossInputs` and returns a `LossOutput`.
        options: keyword arguments of the loss.
    """

    kind = "loss"


for _ref in (TaskRef, RewardRef, LossRef):
    register_type(_ref, serializer=_ref.dump, deserializer=_ref.read)
