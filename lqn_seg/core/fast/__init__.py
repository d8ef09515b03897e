"""What makes the student fast: the same answers as `core`, behind one switch."""
