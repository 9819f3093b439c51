"""How well measures without labels rank encoders."""
