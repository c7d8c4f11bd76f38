"""The mixture that the exporter tests share."""

WORDS = {"web": (10, 50), "code": (60, 180), "math": (20, 100), "poems": (5, 15)}
"""Words per document, uniformly; a word is a token and is its domain's name."""
MIXTURE = {"web": 0.5, "code": 0.3, "math": 0.2, "poems": 0.0}
