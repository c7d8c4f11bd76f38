"""The heart: probes on one resident model, exact interpolation of their delta weights, evaluation of the proxies."""
