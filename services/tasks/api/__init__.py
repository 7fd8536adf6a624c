"""What callers ask for: creates, reads, updates, cancels, and streams of a task's events.

`creation` makes a task of a request, `updates` checks a change of one, `service` holds the use cases, `servicer`
decodes and encodes, `watch` follows tasks for `WatchTask`.
"""
