"""Adapters that give networks of all kinds the same interface: layers by name, features and outputs."""
