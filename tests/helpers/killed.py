"""What stops a training in the middle."""

from transformers import TrainerCallback


class KilledError(Exception):
    """What stops a run in the middle."""


class KillAt(TrainerCallback):
    """Stops a run at a step: as it begins, as it ends, or once it is saved."""

    def __init__(self, step, moment):
        self.step, self.moment = step, moment

    def on_step_begin(self, args, state, control, **kwargs):
        if self.moment == "begin" and state.global_step == self.step:
            raise KilledError

    def on_step_end(self, args, state, control, **kwargs):
        if self.moment == "end" and state.global_step == self.step:
            raise KilledError

    def on_save(self, args, state, control, **kwargs):
        if self.moment == "save" and state.global_step == self.step:
            raise KilledError
