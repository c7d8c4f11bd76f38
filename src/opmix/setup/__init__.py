"""First contact: a configuration from a folder, a look at the machine, and a configuration checked before it is run."""

from opmix.setup.checks import Check, failed
from opmix.setup.doctor import examine
from opmix.setup.first_config import FirstConfig, first_config
from opmix.setup.validation import Validation, validate

__all__ = ["Check", "FirstConfig", "Validation", "examine", "failed", "first_config", "validate"]
