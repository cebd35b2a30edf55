"""`kava replay`."""

from dataclasses import dataclass

from kava.commands.options import Overridable, Positional


@dataclass
class Replay(Overridable):
    """Repeat a training step that was saved because its numbers were not finite (bad_batch-<step> in a run's directory).

    Any configuration field can be overridden, to try a fix: --loss.kv_loss_type l1. Exit code 0: all numbers are finite; 1: not.
    """

    directory: Positional[str]
    """Directory of the saved step, as printed during training: RUN/bad_batch-<step>."""
    all: bool = False
    """Show every example, not only those with numbers that are not finite."""

    def run(self) -> int:
        from kava.runtime.device import choose_device
        from kava.train.replay import replay, show

        replayed = replay(self.directory, self.overrides, choose_device(self.overrides.get("system.device"), "system.device"))
        show(replayed, self.all)
        return int(not replayed.sound)
