"""Bella: a posterior over a large network as n particles, each a low-rank change of one frozen theta_0."""
