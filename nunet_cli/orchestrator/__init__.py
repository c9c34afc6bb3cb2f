"""The lifecycle of a job, one room per stage in the order of the specification.

`post` → `match` → `request` → `contract` → `invoke` → `execute` → `settle`; each module holds the requester's half and
the provider's half of its stage; `allocation` is the machine room of `execute`, `cancel` the way out at every stage.
`orchestrate` walks a job through all of them.
"""
