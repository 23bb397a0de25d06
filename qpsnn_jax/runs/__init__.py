"""Settings, the training loop, the stages of a run, reports, and the command line."""
