"""Many jobs as one: batches, links, schedules, replicas; on top of the stages of each job."""
