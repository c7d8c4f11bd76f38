"""One decision about a mixture, from settings to an answer."""
