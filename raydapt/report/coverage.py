"""How many answers can be taken over, the surest first, and how many of them are right: expected, and by labels."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from raydapt.report.classes import Predictions
from raydapt.report.figures import LIGHT, dress, picture
from raydapt.report.sections import Picture
from raydapt.review.calibration import UNREVIEWED, choose_threshold, curve
from raydapt.review.population import right_shares

WANTED = 0.95
"""Share of right ones that the sentence below the picture is about, as ``raydapt threshold`` by default."""
_LEAST_IMAGES = 20


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """The picture and the sentence below it."""

    picture: Picture
    sentence: str


def coverage_of(predictions: Predictions) -> Coverage | None:
    """The coverage of a run's answers; None where there are too few images, or confidences are not known."""
    confidence_RN = np.stack([predictions.before_confidence_N, predictions.confidence_N])
    if confidence_RN.shape[1] < _LEAST_IMAGES or not np.isfinite(confidence_RN).all():
        return None
    class_RN = np.stack([predictions.before_N, predictions.after_N])
    probability_N = UNREVIEWED.probabilities(right_shares(class_RN, confidence_RN, len(predictions.names))[1])
    order_N, expected_N = curve(probability_N)
    right_N = predictions.right(predictions.after_N)[order_N]
    measured_N = np.nancumsum(right_N) / np.maximum(np.isfinite(right_N).cumsum(), 1)
    judged = bool(np.isfinite(right_N).any())
    taken_N = 100.0 * np.arange(1, len(order_N) + 1) / len(order_N)
    first = _LEAST_IMAGES // 2  # the share of a few images jumps

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(taken_N[first:], 100 * expected_N[first:], ":", color=LIGHT.text, label="expected without labels")
        if judged:
            axes.plot(taken_N[first:], 100 * measured_N[first:], color=LIGHT.after, label="measured")
        dress(axes, x_name="% of images taken, surest first", y_name="% right", title="Coverage")
        axes.legend(frameon=False, labelcolor=LIGHT.text, loc="lower left")

    least, kept, _ = choose_threshold(probability_N, WANTED)
    sentence = f"For {100 * WANTED:.0f} % right, {100 * kept / len(order_N):.0f} % of the images can be taken"
    sentence += f", from a probability of {least:.2f} on" if kept else ""
    known_N = right_N[:kept][np.isfinite(right_N[:kept])]
    sentence += f"; {100 * known_N.mean():.1f} % of them are right" if len(known_N) else ""
    return Coverage(picture=picture(draw, alt=f"Coverage: {sentence}.", width=4.8), sentence=f"{sentence}.")
