"""A network as data, how it runs, and what it costs."""
