"""What things cost: FLOPs and the ledger (standard library only)."""
