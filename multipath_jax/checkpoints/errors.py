"""Errors of reading and writing checkpoints."""

from multipath_jax.errors import Failure, UserError


class Unreadable(UserError):
    """A checkpoint cannot be read, for a reason other than damage."""

    VERDICT = "cannot be read"

    def __init__(self, step: int, reason: str):
        first = (reason.strip().splitlines() or ["unknown reason"])[0]
        super().__init__(f"the checkpoint of step {step} {self.VERDICT} ({first[:300]})")


class Damaged(Unreadable):
    """A checkpoint is damaged: its content is not what was saved."""

    VERDICT = "is damaged"


class WritingFailed(Failure):
    """A checkpoint could not be written (disk space, permissions); earlier ones are intact."""
