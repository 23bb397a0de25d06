"""What is added to the paper's method, each against the plain pipeline: see ``experiments/worth.md``.

Command: ``python -m experiments.worth --hours 1`` does what is next; ``--tables`` shows the results.
"""
