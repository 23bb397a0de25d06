"""Files, processes, devices and progress: independent of networks."""
