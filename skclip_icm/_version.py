"""The version, for the package, its files and its build."""

__version__ = "0.1.0.dev0"
