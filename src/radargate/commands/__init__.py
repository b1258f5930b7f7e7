"""One file for each command of the command line: its flags, and a thin call into the library."""
