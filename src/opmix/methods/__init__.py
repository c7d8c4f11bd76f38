"""Ways to choose a mixture, each behind one seam and handed a context that trains, interpolates and evaluates."""
