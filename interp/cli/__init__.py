"""The command line `interp`."""
