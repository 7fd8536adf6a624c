"""KEDA's external scaler: tells how many workers there are to be, as the scheduler of tasks sees it.

KEDA sends no token, so this is served on a port of its own, by mutual TLS or to whom a network policy lets through. It
only reads, names no tenant, and never answers 0 where it does not know: an error leaves the workers as they are.
"""
