"""The command line: options in, calls to the library, messages and exit codes out."""
