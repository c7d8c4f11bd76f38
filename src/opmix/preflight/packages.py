"""Installed versions against what the package itself says it needs."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

from packaging.requirements import Requirement

from opmix.preflight.checks import Findings

OLDEST_PYTHON = (3, 11)


def check_python(findings: Findings) -> None:
    """The interpreter."""
    version = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        needed = ".".join(map(str, OLDEST_PYTHON))
        findings.fail("python", f"{version}; expected {needed} or newer", f"make an environment with Python {needed}")
    else:
        findings.ok("python", f"{version} on {platform.platform(terse=True)}")


def check_packages(findings: Findings) -> None:
    """Every dependency is there in a supported version; every extra is said to be there or not."""
    try:
        own = metadata.version("opmix")
        requirements = [Requirement(text) for text in metadata.requires("opmix") or ()]
        extras = metadata.metadata("opmix").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        findings.warn(
            "opmix", "runs from a folder and is not installed, so its requirements are not known", "pip install ."
        )
        return
    findings.ok("opmix", own)
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate():
            _check_requirement(requirement, findings)
    for extra in extras:
        missing = [r.name for r in requirements if _belongs(r, extra) and not _fits(r)]
        if missing:
            findings.ok(
                f"extra {extra}", f"not installed (optional): {', '.join(missing)}; pip install {' '.join(missing)}"
            )
        else:
            findings.ok(f"extra {extra}", "installed")


def _check_requirement(requirement: Requirement, findings: Findings) -> None:
    wanted = str(requirement.specifier) or "any"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        findings.fail(
            requirement.name,
            f"not installed; expected {wanted}",
            f"pip install '{requirement.name}{requirement.specifier}'",
        )
        return
    if _fits(requirement):
        findings.ok(requirement.name, f"{version} ({wanted})")
    else:
        findings.fail(
            requirement.name,
            f"{version}; expected {wanted}",
            f"pip install '{requirement.name}{requirement.specifier}'",
        )


def _fits(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def _belongs(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})
