"""What happens in the mesh, for whoever listens: events as the messages of `live.proto`, by tenant and in order.

`feed` reads the stream of events, once for a process; `jobs` and `capture` say what an event means to a listener.
`log` keeps the newest messages: those who listen read it, each at a place of its own, so that one who is slow costs the
others nothing.
`registry` tells which messages there are, `document` what is said of them.
"""
