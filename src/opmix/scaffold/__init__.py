"""A first search.yaml from folders of data: `opmix init`."""

from opmix.scaffold.first_config import FirstConfig, first_config

__all__ = ["FirstConfig", "first_config"]
