"""What is agreed about: jobs, capabilities, bids, allocations and results, and how a job specification is read. No I/O."""
