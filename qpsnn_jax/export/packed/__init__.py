"""The packed file ``*.qpsnn``: a folded network in one small file."""
