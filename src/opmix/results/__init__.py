"""The files that a run leaves: each has one class, which writes it and reads it."""
