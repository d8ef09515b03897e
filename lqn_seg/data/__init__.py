"""Framework-free readers, category tables and corruptions."""
