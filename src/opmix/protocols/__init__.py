"""Interfaces and the values they exchange; nothing here computes."""
