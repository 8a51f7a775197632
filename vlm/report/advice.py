"""Recommendations: one table of causes, thresholds and what to do."""

from dataclasses import dataclass

from vlm.report.analysis import Analysis
from vlm.report.wording import count, percent


@dataclass(frozen=True)
class Rule:
    """Advice that is given once `cause` has at least `threshold` of all questions; `finding` says it in words."""

    cause: str
    threshold: float
    finding: str
    advice: str


RULES = (
    Rule("empty", 0.005, "answers are empty", "raise eval.max_new_tokens and look at the template's end of turn"),
    Rule(
        "wrong language",
        0.01,
        "answers stand in another script than the right ones",
        "train on more dialogues of the new language, or name the language in eval.instruction",
    ),
    Rule(
        "too long",
        0.01,
        "answers are longer than any right one",
        "ask for a single word or phrase in eval.instruction, or train on short answers",
    ),
    Rule(
        "out of vocabulary",
        0.02,
        "answers are none of the known ones",
        "read the examples: accept true synonyms in the data, and train longer against misspellings",
    ),
    Rule(
        "yes/no confused",
        0.02,
        "answers say yes for no or no for yes",
        "balance yes and no in the training turns and look at the negated questions",
    ),
    Rule(
        "other category",
        0.01,
        "answers belong to another type of question",
        "train on more wordings of the types concerned",
    ),
    Rule(
        "wrong value",
        0.03,
        "answers are of the right kind but not what the image shows",
        "train longer, on more images, or at a higher resolution",
    ),
    Rule(
        "no better than prior",
        0.05,
        "questions are of types where the most frequent answer does as well as the model",
        "balance the answers of these types and check that the image reaches the model",
    ),
    Rule(
        "untranslated",
        0.005,
        "answers could not be translated back",
        "add them to the translation memory, or take an engine that knows them",
    ),
)


def recommend(analysis: Analysis) -> list[str]:
    """One sentence for every rule that applies, most questions first."""
    n = analysis.result.n
    counts = {
        **analysis.counts,
        "no better than prior": analysis.no_better_than_prior,
        "untranslated": analysis.result.untranslated,
    }
    applying = [rule for rule in RULES if counts[rule.cause] and counts[rule.cause] >= rule.threshold * n]
    applying.sort(key=lambda rule: -counts[rule.cause])
    return [
        f"{count(counts[rule.cause])} of {count(n)} ({percent(counts[rule.cause] / n) if n else 'all'}) "
        f"{rule.finding}: {rule.advice}."
        for rule in applying
    ]
