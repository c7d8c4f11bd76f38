"""One line of `opmix doctor` and `opmix validate`: what was looked at, how it stands, what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Literal

from opmix.errors import ConfigError, OpMixError

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    detail: str
    remedy: str = ""

    def json(self) -> dict[str, str]:
        """As JSON holds it."""
        return asdict(self)


def failed(checks: Iterable[Check]) -> bool:
    """Whether anything is wrong."""
    return any(check.status == "fail" for check in checks)


@dataclass
class Findings:
    """Checks as they come; what opmix raises becomes a line instead of ending the look-around."""

    checks: list[Check] = field(default_factory=list)

    def ok(self, name: str, detail: str) -> None:
        """All is well."""
        self.checks.append(Check(name, "ok", detail))

    def warn(self, name: str, detail: str, remedy: str = "") -> None:
        """It will run, but perhaps not as meant."""
        self.checks.append(Check(name, "warn", detail, remedy))

    def fail(self, name: str, detail: str, remedy: str = "") -> None:
        """It will not run."""
        self.checks.append(Check(name, "fail", detail, remedy))

    def catching(self, name: str) -> Catching:
        """A block whose `OpMixError` becomes failed checks: one for each problem of a `ConfigError`."""
        return Catching(self, name)


@dataclass(frozen=True)
class Catching:
    """What `Findings.catching` returns."""

    findings: Findings
    name: str

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Swallow what opmix raised, nothing else."""
        if not isinstance(error, OpMixError):
            return False
        for problem in error.problems if isinstance(error, ConfigError) else (str(error),):
            self.findings.fail(self.name, problem)
        return True


def listed(named: Mapping[str, str]) -> str:
    """`a 3, b 4 and 7 more`."""
    shown = [f"{name} {what}" for name, what in list(named.items())[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else "")


_SHOWN = 6
