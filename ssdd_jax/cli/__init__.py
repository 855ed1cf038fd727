"""Command line: argument parsing, and the error handling shared by all commands."""
