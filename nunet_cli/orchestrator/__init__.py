"""The lifecycle of a job, one room per stage in the order of the specification.

`post` → `match` → `request` → `contract` → `invoke` → `execute` → `settle`; each module holds the requester's half and
the provider's half of its stage, or the half has a module beside it (`bid`, `agreement`); what comes of a job is
fetched in `outputs`, what a receipt means is in `receipts`, and `cancel` is the way out at every stage. `orchestrate`
walks a job through all of them. The items of a batch are matched and requested together, in `batch`.

A function's first argument is the node as far as the function needs it: see `needs`.
"""
