"""Where configuration, data, models and the run folder meet a method."""
