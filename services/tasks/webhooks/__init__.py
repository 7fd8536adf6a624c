"""Webhooks: deliveries written in the transaction of a change, sent in order, tried again for three days.

`domain` holds schedules and verdicts, `store` the protocol of the tables, `sender` the requests, `service` and
`servicer` the log, secrets and the deliveries of other services.
"""
