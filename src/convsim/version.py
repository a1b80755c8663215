"""The version, for all who record it."""

__version__ = "0.2.0.dev0"
