"""`opmix validate`: a file, checked as what its keys say it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from opmix.preflight.checks import Findings
from opmix.preflight.life_validation import check_life
from opmix.preflight.validation import Validation, check_search
from opmix.progress import Progress, Silent
from opmix.settings.reading import read_yaml


def validate(path: Path, overrides: Sequence[str] = (), *, progress: Progress | None = None) -> Validation:
    """Check a configuration file; all problems at once, none of them raised.

    Args:
        path: The YAML file.
        overrides: `a.b=c` settings, as for `opmix search --set`.
        progress: Told which domain is looked at.
    """
    findings = Findings()
    with findings.catching("file"):
        content = read_yaml(path, overrides, expected="model, domains and budget")
        check = check_life if "stages" in content else check_search
        return check(content, path.parent.resolve(), progress or Silent())
    return Validation(findings.checks)
