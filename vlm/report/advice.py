"""Recommendations in sentences."""

from vlm.eval.explain.advice import Recommendation
from vlm.report.analysis import Analysis
from vlm.report.wording import clean, count, percent, points

# share of all questions from which on it is said that the question alone gives the answer away
PRIOR_THRESHOLD = 0.05


def recommend(analysis: Analysis) -> list[str]:
    """One sentence for every recommendation, the largest possible gain first."""
    n = analysis.result.n
    sentences = [sentence(each, n) for each in analysis.recommendations]
    if (blind := analysis.no_better_than_prior) and blind >= PRIOR_THRESHOLD * n:
        sentences.append(
            f"{_share(blind, n)} questions are of types where the most usual answer does as well as the model: "
            "balance the answers of these types (data.mix) and check that the image reaches the model."
        )
    return sentences


def sentence(each: Recommendation, n: int) -> str:
    """A recommendation of an evaluation with n questions."""
    said = f"{_share(each.count, n)} {each.finding}, {points(each.at_most)} at most: {each.advice}"
    # a key without a value is no advice of its own: it says where
    keys = "; ".join(setting for setting in each.settings if "=" not in setting)
    values = clean("; ".join(setting for setting in each.settings if "=" in setting), 400)
    said += f" ({keys})." if keys else "."
    return said if not values else f"{said} Set {values}" + ("" if values.endswith(".") else ".")


def _share(number: int, n: int) -> str:
    return f"{count(number)} of {count(n)} ({percent(number / n) if n else 'all'})"
