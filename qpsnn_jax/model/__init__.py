"""Networks as data, their execution and their costs."""
