"""What was found at a stage: mistakes that reproduce what the candidate computed, and how closely."""

from dataclasses import dataclass, field

from mvlm_np.golden.compare.notes import UNRELATED
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
        return self.error <= self.allowed

    @property
    def strange(self) -> bool:
        """What the candidate computed is like nothing that is known."""
        return not self.blank and self.cosine < UNRELATED and not self.exact

    @property
    def rounding(self) -> bool:
        """Nothing is wrong but the type: rounding to 16 bits accounts for all of the error."""
        return all(c.variant.half for c in self.causes) and bool(self.causes) and self.error == self.before

    @property
    def believed(self) -> bool:
        """They do, or come much closer than the reference."""
        return bool(self.causes) and (self.exact or self.error < GAIN * self.before)

    @property
    def snr(self) -> float:
        """Signal to noise of the reproduction, in dB."""
        return decibels(self.error)
