"""Questions with options: read, encoded, and as rows to compare models on. Only targets hold them; nothing trains on them."""

from opmix.data.choice.question import Question, iter_questions, target_kind
from opmix.data.choice.rows import ChoiceRows, encode_questions

__all__ = ["ChoiceRows", "Question", "encode_questions", "iter_questions", "target_kind"]
