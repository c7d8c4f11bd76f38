"""Models and tokenizers: loaded, on disk, and made from scratch."""
