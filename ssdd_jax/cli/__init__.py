"""The command line: parsing arguments, and the behaviour that all commands share."""
