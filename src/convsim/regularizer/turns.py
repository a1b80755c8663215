"""Which training steps a penalty on feature maps looks at, if not at all of them."""

from __future__ import annotations

from typing import Any

import torch

from convsim.errors import ConvsimError
from convsim.penalties import ActivationPenalty, Penalty


class Turns:
    """Count steps: of every so many the first is looked at, and the penalty rests in the others.

    A step ends when the penalty has been asked for and the next forward pass begins. What a forward
    pass reads of it are flags alone, so that torch.compile compiles a model a few times only.

    Attributes:
        every: Of how many steps one is looked at.
        passed: How many have been asked for; not counted where each is looked at.
        rests: Whether the penalty rests in this step.
    """

    def __init__(self, every: int, penalty: Penalty | ActivationPenalty) -> None:
        if not isinstance(every, int) or every < 1:
            raise ConvsimError(f"every must be an integer ≥ 1; got {every!r}.")
        if every > 1 and isinstance(penalty, Penalty):
            raise ConvsimError(
                f"every={every} is for penalties on feature maps; {penalty} acts on kernels, which "
                "are there at any time: give the coefficient times so much, and call the "
                "regularizer in each so-manieth step alone."
            )
        self.every, self._asked = every, False
        self.go_on(0)

    def go_on(self, passed: Any) -> None:
        """Begin a step after so many."""
        if not isinstance(passed, int) or passed < 0:
            raise ConvsimError(
                f"The number of steps passed must be an integer ≥ 0; got {passed!r}."
            )
        self.passed = passed
        self.rests = self._rests_next = passed % self.every != 0

    def ask(self) -> None:
        """End the step, if it is the first time that it is asked for.

        Raises:
            ConvsimError: Where one step is recorded and repeated, if steps differ.
        """
        if self.every > 1 and (torch.compiler.is_compiling() or _in_cuda_graph()):
            raise ConvsimError(
                f"every={self.every} makes steps that differ, and this one is recorded to be "
                "repeated. Call the regularizer outside of what torch.compile compiles (compile "
                "the model alone) or a CUDA graph records, or leave every at 1."
            )
        if self.every > 1 and not self._asked:
            self.passed += 1
            self._rests_next = self.passed % self.every != 0
        self._asked = True

    def begin(self) -> bool:
        """Tell, in a forward pass, whether a new step begins with it."""
        begins, self._asked = self._asked, False
        if begins:
            self.rests = self._rests_next
        return begins


def _in_cuda_graph() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
