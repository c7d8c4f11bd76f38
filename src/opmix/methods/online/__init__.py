"""Methods that decide while a model trains, and the trials that average what they decided."""
