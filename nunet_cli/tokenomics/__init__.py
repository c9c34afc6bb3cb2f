"""Contracts, the contract database, the ledger, payment and the oracle."""
