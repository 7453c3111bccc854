"""Every mistake that is known, in the order of the stages where they show."""

from mvlm_np.golden.format import order
from mvlm_np.golden.mistakes import base, decoder, picture, projector, prompt, vision, weights

PARTS = (picture, vision, weights, projector, prompt, decoder)  # which have put theirs on the list
MISTAKES = dict(sorted(base.MISTAKES.items(), key=lambda item: order(item[1].stage)))
