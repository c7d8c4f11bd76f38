"""A first search.yaml from folders of data, or from a training YAML: `opmix init`."""

from opmix.scaffold.first_config import FirstConfig, first_config
from opmix.scaffold.trainer_yaml import read_trainer, search_from_trainer

__all__ = ["FirstConfig", "first_config", "read_trainer", "search_from_trainer"]
