"""The file that JAXline's `--config=FILE:NAME` is given, for every recipe."""

from experiments import configs

get_config = configs.load
