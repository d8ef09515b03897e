"""The journey: pixels, a teacher and a method to adapted tokens, for both tasks."""
