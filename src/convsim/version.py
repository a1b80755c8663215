"""The version, for all who record it."""

__version__ = "0.1.0.dev0"
