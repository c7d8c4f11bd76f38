"""opmix inside other trainers: their data come from a mixture that is decided again while they train."""
