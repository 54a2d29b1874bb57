"""Who grades: the environments of this package, in workers and in the sandbox as in training."""

from collections.abc import Callable

from nemo_cascade.environments import response_of
from nemo_cascade.environments.workers import Verifiers
from nemo_cascade.sandbox import SandboxError
from nemo_cascade.scaling.types import Case, ScalingRefused

# Verdicts that a kill can cost, for each worker or sandboxed program at a time.
AT_ONCE = 4


class EnvironmentGrader:
    """Grades texts, which are answers without thoughts, by the environments of their rows."""

    def __init__(self, verifiers: Verifiers):
        self.verifiers = verifiers

    def grade(self, cases: list[Case], told: Callable[[Case, dict], None]) -> None:
        size = AT_ONCE * self.verifiers.workers
        for start in range(0, len(cases), size):
            some = cases[start : start + size]
            try:
                verdicts = self.verifiers.verify([(case.row, response_of(case.text, thinking=False)) for case in some])
            except SandboxError as error:
                raise ScalingRefused(f"{some[0].key}: {error}") from None
            for case, verdict in zip(some, verdicts):
                told(case, verdict)
