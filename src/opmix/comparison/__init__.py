"""`opmix compare`: one life lived several ways, on the same model, data, tokens and seeds."""
