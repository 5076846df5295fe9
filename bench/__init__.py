"""Benchmarks, and the ledger of bytes moved."""
