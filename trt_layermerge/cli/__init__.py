"""The command line: arguments to a pipeline stage, and its result to the user's eyes."""
