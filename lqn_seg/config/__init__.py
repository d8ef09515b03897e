"""YAML files to dataclasses: the only readers of a configuration node."""
