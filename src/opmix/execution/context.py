"""What the processes of a run are told once, whichever of its tasks they do.

tasks/context.json    {"worker", "config", "base", "frozen"}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from opmix.errors import StoreError
from opmix.runs.files import json_of, without_secrets, write_json

FILE = "tasks/context.json"
Worker = Literal["search", "life", "comparison"]
"""Who does the tasks of a run folder; `opmix task` makes it."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a worker is made from; everything else is in the run folder."""

    worker: Worker
    config: Mapping[str, Any]
    """As the process that waits for the records read it, without its executor; secrets stay there."""
    base: Path
    """Folder that the configuration's relative paths start from."""
    frozen: Sequence[str] = ()
    """Parameters of a search's model that are not trained."""

    def write(self, folder: Path) -> None:
        """Write it for the processes of a run folder.

        Raises:
            StoreError: It cannot be written.
        """
        write_json(folder / FILE, without_secrets({**asdict(self), "base": str(self.base.resolve())}))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return what was written for the processes of a run folder.

        Raises:
            StoreError: Nothing was, or it is damaged.
        """
        file = folder / FILE
        try:
            said = json_of(file)
            if said["worker"] not in get_args(Worker):
                raise ValueError(f"worker: {said['worker']!r}")
            return cls(
                worker=said["worker"],
                config=dict(said["config"]),
                base=Path(said["base"]),
                frozen=tuple(map(str, said["frozen"])),
            )
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise StoreError(
                f"{file}: cannot be read ({error}); expected what a run with `executor` wrote there: start that run, "
                "it starts its tasks itself"
            ) from error
