"""Methods that train a swarm of small models."""
