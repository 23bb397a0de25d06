"""What any program needs around it: files, processes, devices, progress. Knows nothing of networks."""
