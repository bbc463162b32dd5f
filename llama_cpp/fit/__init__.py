"""What the machine can do, and the parameters that follow from it."""
