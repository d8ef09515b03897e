"""The paper: addresses, the student, its losses, its fit. torch and the standard library only."""
