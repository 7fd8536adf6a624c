"""How long items wait for others that share their call, commit or batch: every linger of the mesh, in seconds.

The mechanism is `meshkit.microbatch`.
"""

# Creates, and completions, that share a commit in tasks. Callers who got the last commit's answers are about to send
# again, and are back within 3 ms.
COMMIT_LINGER = 0.003
# Completions of a worker that share an RPC. Attempts of a batch end within a few ms of each other.
COMPLETION_LINGER = 0.004
# Calls that share a bundle. The linger ends early, once as many calls wait as were lately under way.
BUNDLE_LINGER = 0.006
# Workflows that are decided in one transaction. The steps that the last transaction began are about to end; 8 ms is
# short against the task that comes next.
TASK_END_LINGER = 0.008
# Pause between two batches of ended tasks that JetStream sends to workflows. Core NATS has sent nearly all of them
# before, so nothing waits for it.
TASK_EVENT_LINGER = 0.1
# Commits whose events tasks' relay publishes in one run: a run costs three transactions.
TASKS_RELAY_LINGER = 0.02
# The same in workflows, where no next step waits for the events.
WORKFLOWS_RELAY_LINGER = 0.05
# Jobs that share a batch on a device; the default of a setting. Short against the shortest job.
DEVICE_BATCH_LINGER = 0.005
# Pause of a worker before it polls again while work keeps coming: a poll costs the mesh nearly as much for one task as
# for thirty.
POLL_LINGER = 0.015
