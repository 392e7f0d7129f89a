"""What a plugin's source says about it, read without importing the plugin: purpose, options, defaults, documentation.

`lit-reason plugins list` and `show` answer from this, at once and also for plugins whose import fails.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One option of a plugin, as its source spells it.

    Attributes:
        name: the YAML key.
        type: annotation, "" when there is none.
        default: expression, None when the option is required.
        doc: from the `Args` of the class that declares it.
    """

    name: str
    type: str
    default: str | None
    doc: str


@dataclass(kw_only=True, slots=True)
class Description:
    """What the source of a plugin says.

    Attributes:
        purpose: first line of the docstring.
        doc: the docstring's text without its `Args` and later sections.
        file: where the source is, None when it was not found.
        options: in the order they are declared, the plugin's own first, then those it passes on to a base class.
        attributes: expressions of those in `ATTRIBUTES` that its source or that of a base class sets.
    """

    purpose: str = ""
    doc: str = ""
    file: str | None = None
    options: list[Option] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)


ATTRIBUTES = ("default_weight", "deadline", "on_timeout", "memory_mb")
"""What a reward says of itself in attributes."""


def describe(value: str) -> Description:
    """Describe the class or function of an entry-point value, `package.module:Class`; empty where nothing is found."""
    module, _, attribute = value.partition(":")
    found = _definition(module.strip(), attribute.split("[")[0].strip())
    if found is None:
        return Description()
    source, definition = found
    doc = inspect.cleandoc(ast.get_docstring(definition) or "")
    text, _ = _sections(doc)
    purpose = " ".join(text.split("\n\n")[0].split())
    described = Description(purpose=purpose, doc=text, file=str(source.file))
    if isinstance(definition, ast.ClassDef):
        described.options = _options(source, definition)
        described.attributes = {name: text for name in ATTRIBUTES if (text := _attribute(source, definition, name))}
    return described


@dataclass(frozen=True, slots=True)
class _Source:
    """A parsed module."""

    name: str
    file: Path
    tree: ast.Module

    def absolute(self, statement: ast.ImportFrom) -> str:
        """The module an import statement means, relative ones resolved."""
        if not statement.level:
            return statement.module or ""
        package = self.name.split(".")
        if self.file.name != "__init__.py":
            package.pop()
        package = package[: len(package) - (statement.level - 1)]
        return ".".join([*package, *([statement.module] if statement.module else [])])


@functools.cache
def _source(module: str) -> _Source | None:
    """The module's source; None when it is missing, not Python, or cannot be read."""
    try:
        spec = _spec(module)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            return None
        file = Path(spec.origin)
        return _Source(module, file, ast.parse(file.read_bytes()))
    except (ImportError, OSError, SyntaxError, ValueError, AttributeError):
        return None


def _spec(module: str) -> ModuleSpec | None:
    """Find a module without importing it or its parents, which `importlib.util.find_spec` would do for a submodule."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    name = top
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return spec


def _definition(module: str, name: str, hops: int = 5) -> tuple[_Source, Definition] | None:
    """Where a class or function is defined, imports followed for a few `hops`."""
    source = _source(module)
    if source is None or hops == 0:
        return None
    for statement in source.tree.body:
        if isinstance(statement, Definition) and statement.name == name:
            return source, statement
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    return _definition(source.absolute(statement), alias.name, hops - 1)
    return None


def _options(source: _Source, definition: ast.ClassDef, hops: int = 8) -> list[Option]:
    """Options of a class: arguments of its `__init__` or dataclass fields, else those of its base classes."""
    doc = inspect.cleandoc(ast.get_docstring(definition) or "")
    init = next((s for s in definition.body if isinstance(s, ast.FunctionDef) and s.name == "__init__"), None)
    documented = _sections(doc)[1]
    if init is not None:
        documented |= _sections(inspect.cleandoc(ast.get_docstring(init) or ""))[1]
        own = _arguments(init.args, documented)
        if init.args.kwarg is None:
            return _with_inherited_docs(own, source, definition, hops)
    elif any("dataclass" in ast.unparse(d) for d in definition.decorator_list):
        own = _fields(definition, documented)
    else:
        own = []
    known = {option.name for option in own}
    return own + [option for option in _inherited(source, definition, hops) if option.name not in known]


def _with_inherited_docs(own: list[Option], source: _Source, definition: ast.ClassDef, hops: int) -> list[Option]:
    """Fill in the documentation of options that a class takes again from its base and does not document again."""
    if all(option.doc for option in own):
        return own
    docs = {option.name: option.doc for option in _inherited(source, definition, hops)}
    return [Option(name=o.name, type=o.type, default=o.default, doc=o.doc or docs.get(o.name, "")) for o in own]


def _inherited(source: _Source, definition: ast.ClassDef, hops: int) -> list[Option]:
    """Options of the base class."""
    base = _base(source, definition) if hops else None
    return [] if base is None else _options(*base, hops - 1)


def _attribute(source: _Source, definition: ast.ClassDef, name: str, hops: int = 8) -> str:
    """What a class, or else its base class, sets an attribute to, in its body or in a method; "" where none does."""
    for statement in ast.walk(definition):
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            values: list[ast.expr] = [statement.value]
            if isinstance(targets[0], ast.Tuple) and isinstance(statement.value, ast.Tuple):
                targets, values = targets[0].elts, statement.value.elts
            for target, value in zip(targets, values, strict=False):
                if ast.unparse(target) in (name, f"self.{name}"):
                    return ast.unparse(value)
    base = _base(source, definition) if hops else None
    return "" if base is None else _attribute(*base, name, hops - 1)


def _base(source: _Source, definition: ast.ClassDef) -> tuple[_Source, ast.ClassDef] | None:
    """The first base class whose source is found."""
    for base in definition.bases:
        found = _definition(source.name, ast.unparse(base).split("[")[0])
        if found is not None and isinstance(found[1], ast.ClassDef) and found[1] is not definition:
            return found[0], found[1]
    return None


def _arguments(arguments: ast.arguments, documented: dict[str, str]) -> list[Option]:
    positional = [*arguments.posonlyargs, *arguments.args]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = list(zip(positional, [*missing, *arguments.defaults], strict=True))[1:]  # without self
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return [_option(arg.arg, arg.annotation, default, documented) for arg, default in pairs]


def _fields(definition: ast.ClassDef, documented: dict[str, str]) -> list[Option]:
    return [
        _option(s.target.id, s.annotation, s.value, documented)
        for s in definition.body
        if isinstance(s, ast.AnnAssign)
        and isinstance(s.target, ast.Name)
        and "ClassVar" not in ast.unparse(s.annotation)
    ]


def _option(name: str, annotation: ast.expr | None, default: ast.expr | None, documented: dict[str, str]) -> Option:
    return Option(
        name=name,
        type="" if annotation is None else ast.unparse(annotation).strip("'\""),
        default=None if default is None else ast.unparse(default),
        doc=documented.get(name, ""),
    )


def _sections(doc: str) -> tuple[str, dict[str, str]]:
    """A Google-style docstring as its free text and the documentation of its arguments."""
    text: list[str] = []
    entries: dict[str, str] = {}
    section = name = ""
    for line in doc.splitlines():
        stripped = line.strip()
        if line and not line[0].isspace():
            section = stripped[:-1] if stripped in {"Args:", "Attributes:", "Returns:", "Raises:", "Example:"} else ""
        indent = len(line) - len(line.lstrip())
        if not section:
            text.append(line)
        elif section in {"Args", "Attributes"} and stripped:
            key, colon, rest = stripped.partition(":")
            key = key.split("(")[0].strip()
            if indent == 4 and colon and key.isidentifier():
                name = key
                entries[name] = rest.strip()
            elif name:
                entries[name] = f"{entries[name]} {stripped}".strip()
    return "\n".join(text).strip(), entries
