"""Gates before providers: breakers, calls at once, rates; and what their calls have used.

A call to a provider is leased as any attempt is, but only while its gates admit it. The rows of the gates are locked in
the round that leases, so all replicas agree, and a breaker that is half open admits exactly as many calls as it is told
to. What workers note of their calls moves the breakers. Work of this mesh's own devices passes no gate.

`domain` holds breakers, buckets and limits; `gates` what a round may lease.
"""
