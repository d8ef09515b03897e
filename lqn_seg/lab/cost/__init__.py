"""Multiply-adds, memory and time."""
