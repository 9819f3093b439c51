"""The counts of one fault."""

import dataclasses


@dataclasses.dataclass
class Tally:
    """One line of the table."""

    fault: str
    tried: int = 0
    survived: int = 0  # the same command resumed, or one error line named the cause and the remedy
    equal: int = 0  # the final result equals that of the undisturbed run, bit for bit
    message: str = ""  # an example
    untried: str = ""  # why it could not be tried here
    losses: list[str] = dataclasses.field(default_factory=list)

    def count(self, difference: str, *, times: int = 1, survived: bool = True) -> None:
        """Adds trials with the same end; `difference` is '' if nothing is lost."""
        self.tried += times
        self.survived += times if survived else 0
        self.equal += 0 if difference else times
        if difference:
            self.losses.append(difference)

    def lose(self, why: str) -> None:
        """Adds one trial that did not come to its end."""
        self.count(why, survived=False)

    @property
    def lost(self) -> int:
        """Trials that were not survived or did not end equal."""
        return self.tried - min(self.survived, self.equal)
