"""The command line: ``python -m copier``. Nothing heavy is imported before a command runs."""
