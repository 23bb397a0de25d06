"""The command line, ``qpsnn``. A command imports what is slow to import only when it runs."""
