"""Task scores: whether answers are right. Reported beside losses, never fitted."""

from opmix.scores.extract import EXTRACTORS, Extractor, extractor_of
from opmix.scores.intervals import wilson
from opmix.scores.task import Score, score_split

__all__ = ["EXTRACTORS", "Extractor", "Score", "extractor_of", "score_split", "wilson"]
