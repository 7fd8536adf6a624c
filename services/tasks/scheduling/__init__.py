"""What workers ask for: sessions, leases, reports, and the ends of attempts.

`scheduler` gives work to parked `polls` in dispatch rounds, `fairness` holds the arithmetic of virtual time, `service`
holds the use cases of workers, `servicer` decodes and encodes, `progress` passes progress on, `result_paths` judges
what a worker names as its result.
"""
