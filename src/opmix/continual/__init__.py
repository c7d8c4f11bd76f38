"""Ways to train on the new without forgetting the old, other than mixing: each is a method of the comparison."""
