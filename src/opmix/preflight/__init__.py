"""Everything that can be known before training: `opmix validate` and `opmix doctor`."""

from opmix.preflight.checks import Check, failed
from opmix.preflight.doctor import examine
from opmix.preflight.validate import validate
from opmix.preflight.validation import Validation

__all__ = ["Check", "Validation", "examine", "failed", "validate"]
