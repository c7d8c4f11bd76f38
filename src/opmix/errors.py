"""Everything opmix raises on purpose.

    OpMixError
      ConfigError        a configuration that cannot be read or breaks a rule (all problems at once)
      DataError          a source that is missing, empty, unreadable or does not fit the tokenizer
      ModelError         a model or tokenizer that cannot be used as asked
      AdapterError       an adapter that does not fit the base model or is not linear in its weight
      TrainingError      a training run that diverged or stopped early
      LawError           too few or degenerate points to fit a mixing law
      SolverError        the mixture problem has no answer we can vouch for
        InfeasibleError  the constraints contradict each other; names the ones to relax
      StoreError         a run folder that is held, damaged or cannot be written

A message says what was wrong, the value, what was expected, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence


class OpMixError(Exception):
    """Base of all errors that opmix raises on purpose; catch it to catch them all."""


class ConfigError(OpMixError):
    """A configuration cannot be read or breaks a rule.

    Attributes:
        problems: One sentence per problem, each starting with its dotted path.
    """

    def __init__(self, problems: str | Sequence[str], *, where: str | None = None) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        head = f"{where}: " if where else ""
        if len(self.problems) == 1:
            super().__init__(head + self.problems[0])
        else:
            lines = "".join(f"\n  - {problem}" for problem in self.problems)
            super().__init__(f"{head}{len(self.problems)} problems{lines}")


class DataError(OpMixError):
    """A source is missing, empty, unreadable or does not fit the tokenizer."""


class ModelError(OpMixError):
    """A model or tokenizer cannot be used as asked."""


class AdapterError(OpMixError):
    """An adapter does not fit the base model, or its delta is not linear in its weight."""


class TrainingError(OpMixError):
    """A training run diverged (NaN or infinite loss) or stopped before its last step."""


class LawError(OpMixError):
    """A mixing law cannot be fitted: too few, degenerate or non-finite points."""


class SolverError(OpMixError):
    """The mixture problem has no answer that passes its own certificate."""


class InfeasibleError(SolverError):
    """The constraints contradict each other.

    Attributes:
        conflicts: The constraints that cannot hold together, one sentence each.
    """

    def __init__(self, conflicts: Sequence[str]) -> None:
        self.conflicts: tuple[str, ...] = tuple(conflicts)
        lines = "".join(f"\n  - {conflict}" for conflict in self.conflicts)
        super().__init__(f"no mixture satisfies all constraints; relax at least one of:{lines}")


class StoreError(OpMixError):
    """A run folder is held by another process, damaged or cannot be written."""


def error_named(name: str, message: str) -> OpMixError:
    """An error that another process raised, as far as a sentence tells it; of a class that is not ours: the base of all."""
    name = SolverError.__name__ if name == InfeasibleError.__name__ else name  # its conflicts are in the message alone
    kinds = (ConfigError, DataError, ModelError, AdapterError, TrainingError, LawError, SolverError, StoreError)
    kind = {kind.__name__: kind for kind in kinds}.get(name, OpMixError)
    return kind(message)
