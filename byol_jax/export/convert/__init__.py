"""Weights of other libraries' networks, to and from our trees."""
