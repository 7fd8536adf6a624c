"""Jobs of other services on the scheduler: leased, retried and ended as tasks are, and no tasks to callers.

What a job is about, its own service knows; its row here has the lifecycle alone. Lists of tasks, limits and webhooks
pass jobs over.
"""
