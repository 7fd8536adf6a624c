"""Live events to clients: over WebSocket and as server-sent events, from the log of `meshkit.live`."""
