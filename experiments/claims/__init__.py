"""The paper's claims, tested on CIFAR-10: what is asked is in ``experiments/claims.md``, written before the first run.

Command: ``python -m experiments.claims --hours 2.5 --data-dir DIR`` does what is next; ``--tables`` shows the results.
"""
