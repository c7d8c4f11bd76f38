"""Training on a mixture through the trainers people already use; one factory for probes and full runs."""
