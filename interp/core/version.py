"""The version of this library, where everything below `interp` itself can read it."""

__version__ = "0.1.0"
