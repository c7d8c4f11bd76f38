"""Domains for a corpus that has none: clusters of like documents, named by their words."""

from opmix.discovery.division import Discovered, Discovery, DiscoverySettings, discover

__all__ = ["Discovered", "Discovery", "DiscoverySettings", "discover"]
