"""The app of every verb: for the help, for completion, and for a verb that there is none of."""

from __future__ import annotations

from opmix.cli.verbs import VERBS, app_of

app = app_of(VERBS)
