"""The integer network as C99 source."""
