"""Task scores: whether answers are right. Reported beside losses, never fitted."""

from opmix.scores.extract import EXTRACTORS, Extractor, extractor_of
from opmix.scores.intervals import wilson
from opmix.scores.paired import Difference, TaskScore, paired_difference
from opmix.scores.task import Score, score_split

__all__ = [
    "EXTRACTORS",
    "Difference",
    "Extractor",
    "Score",
    "TaskScore",
    "extractor_of",
    "paired_difference",
    "score_split",
    "wilson",
]
