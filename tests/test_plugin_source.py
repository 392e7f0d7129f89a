"""What is said about a plugin without importing it."""

import sys
from pathlib import Path

import pytest

from lit_reason.plugin_source import Option, describe

PACKAGE = {
    "__init__.py": "raise RuntimeError('imported')\nfrom .deep.inner import Child as Exported\n",
    "deep/__init__.py": "",
    "deep/inner.py": '''
from dataclasses import dataclass
from typing import ClassVar
from ..base import Parent
import somewhere

class Child(Parent):
    """Does a thing
    over two lines.

    More about it.

    Args:
        own: its own option,
            explained on two lines.
        shared (int): told anew.

    Raises:
        UserError: never.
    """

    def __init__(self, own: str, *, shared: int = 2, **rest) -> None: ...

class Silent(Parent):
    """Says nothing about its options."""
    def __init__(self, *, shared: "int" = 3): ...

class Bare(Parent): ...

class Timed(Parent):
    on_timeout = -1.0
    def __init__(self, timeout: float = 5.0):
        self.deadline, self.memory_mb = timeout, 256

class Metric(Bare):
    default_weight = 0.0

@dataclass
class Data(somewhere.Else):
    """Fields are options.

    Attributes:
        width: how wide.
    """
    width: float
    height: float = 1.0
    kind: ClassVar[str] = "x"

def function(rollout):
    """A function."""
''',
    "base.py": '''
class Parent:
    """A base.

    Args:
        shared: of all.
        inherited: from above.
    """
    default_weight: ClassVar[float] = 0.5
    def __init__(self, *, shared: int = 1, inherited: bool = True): ...
''',
    "broken.py": "def (:",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that cannot be imported; a name per test, because sources are parsed once."""
    name = f"described_{tmp_path.name}"
    for file, text in PACKAGE.items():
        path = tmp_path / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_class_is_described_with_the_options_it_passes_on(package: str) -> None:
    found = describe(f"{package}.deep.inner:Child")
    assert found.purpose == "Does a thing over two lines."
    assert found.doc.endswith("More about it.")
    assert found.file is not None
    assert found.file.endswith("inner.py")
    assert found.options == [
        Option(name="own", type="str", default=None, doc="its own option, explained on two lines."),
        Option(name="shared", type="int", default="2", doc="told anew."),
        Option(name="inherited", type="bool", default="True", doc="from above."),
    ]
    assert package not in sys.modules


def test_documentation_is_inherited_where_a_class_says_nothing(package: str) -> None:
    assert describe(f"{package}.deep.inner:Silent").options == [
        Option(name="shared", type="int", default="3", doc="of all.")
    ]
    assert [o.name for o in describe(f"{package}.deep.inner:Bare").options] == ["shared", "inherited"]


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("Silent", {"default_weight": "0.5"}),
        ("Metric", {"default_weight": "0.0"}),
        ("Timed", {"default_weight": "0.5", "deadline": "timeout", "on_timeout": "-1.0", "memory_mb": "256"}),
        ("Data", {}),
    ],
)
def test_the_weight_and_the_limits_a_reward_gives_itself_are_found_in_it_or_its_base(
    package: str, name: str, attributes: dict[str, str]
) -> None:
    assert describe(f"{package}.deep.inner:{name}").attributes == attributes


def test_a_name_imported_from_elsewhere_is_followed(package: str) -> None:
    assert describe(f"{package}:Exported").purpose == "Does a thing over two lines."


def test_fields_of_a_dataclass_are_options(package: str) -> None:
    assert describe(f"{package}.deep.inner:Data").options == [
        Option(name="width", type="float", default=None, doc="how wide."),
        Option(name="height", type="float", default="1.0", doc=""),
    ]


def test_a_function_has_a_purpose_and_no_options(package: str) -> None:
    found = describe(f"{package}.deep.inner:function")
    assert (found.purpose, found.options) == ("A function.", [])


@pytest.mark.parametrize(
    "value", ["{}:Nothing", "{}.missing:X", "{}.broken:X", "nowhere_at_all.x:Y", "sys:path", ":", ""]
)
def test_what_cannot_be_found_is_described_as_nothing(package: str, value: str) -> None:
    found = describe(value.format(package))
    assert (found.purpose, found.file, found.options) == ("", None, [])


def test_built_in_options_are_those_of_the_class_and_its_base() -> None:
    options = {o.name: o for o in describe("lit_reason.losses.dapo:DAPO").options}
    assert options["epsilon_high"].default == "0.28"
    assert options["beta"].doc
