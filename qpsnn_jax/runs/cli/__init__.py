"""The command line, ``qpsnn``. Anything heavy is imported by the command that needs it."""
