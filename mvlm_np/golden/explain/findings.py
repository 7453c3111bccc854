"""What was found at a stage: mistakes that reproduce what the candidate computed, and how closely."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mvlm_np.golden.explain.mistake import Mistake, Variant
from mvlm_np.golden.measure import decibels

GAIN = 0.7  # what another mistake must bring the error down by to be believed


@dataclass(frozen=True)
class Cause:
    """A mistake in one of its variants."""

    mistake: Mistake
    variant: Variant

    @property
    def place(self) -> tuple[str, str]:
        return self.mistake.id, self.variant.step


@dataclass(frozen=True)
class Unseen:
    """A mistake that a golden does not show, or the ways to make it that it does not.

    details  of those ways, if there are others that show
    """

    mistake: Mistake
    details: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return self.mistake.id


@dataclass
class Finding:
    """What was found at a stage.

    stage         that the candidate did not compute as the reference would from the candidate's own input
    before        relative error of the reference (Euclidean)
    error         relative error of the reference with the mistakes made
    cosine        of the angle between that and what the candidate computed
    allowed       the error that rounding explains
    blank         whether the candidate's stage is all 0, or NaN and infinity only: then errors mean nothing
    causes        the mistakes; none if nothing brought it closer
    alternatives  other explanations that fit as well
    """

    stage: str
    before: float
    error: float
    cosine: float
    allowed: float
    causes: tuple[Cause, ...] = ()
    alternatives: list[tuple[Cause, ...]] = field(default_factory=list)
    blank: bool = False

    @property
    def exact(self) -> bool:
        """The mistakes reproduce the candidate, within rounding."""
        return fits(self.causes, self.error, self.allowed, self.before)

    @property
    def believed(self) -> bool:
        """They do, or come much closer than the reference."""
        return bool(self.causes) and (self.exact or self.error < GAIN * self.before)

    @property
    def snr(self) -> float:
        """Signal to noise of the reproduction, in dB."""
        return decibels(self.error)


def fits(causes: Sequence[Cause], error: float, limit: float, before: float) -> bool:
    """Whether mistakes explain a stage. One that rounds need not do so to the last bit, since where two
    implementations differ by a little, a few results are rounded the other way."""
    return error <= limit or (error < before / 10 and any(c.variant.rounds for c in causes))
