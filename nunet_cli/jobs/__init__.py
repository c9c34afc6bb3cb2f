"""What is agreed about: jobs, capabilities, bids, allocations, results; and reading a job specification. No I/O."""
