"""The run folder: fingerprinted steps, written atomically (standard library only)."""
