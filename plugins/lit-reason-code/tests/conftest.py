"""Where there is no sandbox, a test that needs one checks instead that programs are refused."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from lit_reason_code.sandbox.pool import Sandbox, SandboxError

NAMESPACES = {"full": None, "standard": False}


@cache
def missing(tier: str) -> str | None:
    """Why a tier cannot be had here; None where it can."""
    sandbox = Sandbox(namespaces=NAMESPACES[tier])
    try:
        report = sandbox.report()
    except SandboxError as error:
        return str(error)
    finally:
        sandbox.close()
    return None if report.tier == tier else report.notes[0]


@pytest.fixture(params=NAMESPACES)
def tier(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def sandbox(tier: str) -> Iterator[Sandbox]:
    sandbox = Sandbox(namespaces=NAMESPACES[tier], workers=2)
    yield sandbox
    sandbox.close()


@pytest.fixture
def needs_sandbox() -> None:
    """For tests that take whatever sandbox there is."""


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: Any) -> bool | None:
    from lit_reason_code.reward import Code

    from lit_reason.types import UserError

    tier = pyfuncitem.funcargs.get("tier")
    if tier is not None and missing(tier):
        if missing("standard"):
            with pytest.raises(SandboxError, match="no standard sandbox: "):
                Sandbox(namespaces=NAMESPACES[tier]).run(0, b"{}", b"", seconds=1, memory=2**29, limit=1)
        else:
            assert missing(tier)
        return True
    if "needs_sandbox" in pyfuncitem.fixturenames and missing("standard"):
        with pytest.raises(UserError, match="reward 'code': programs cannot be confined here"):
            Code()
        return True
    return None
