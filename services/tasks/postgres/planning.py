"""Settings of PostgreSQL's planner for single transactions, so that a plan made for a small table reads no large one.

Statements are prepared, and the server keeps the plan of a prepared statement until the next ANALYZE of its tables, a
minute or more after they have grown.
"""

from __future__ import annotations

from meshkit.pipeline import LocalSettings

# For the statements of the hot transactions, and for no others: creates, rounds, completions, progress, outcomes of
# webhooks. Each of them has one index to use, and to plan anew for the values costs more than to read. A plan that was
# made while a table was small would read all of it, so that choice is taken away. Rows are locked in the order in which
# an index or a nested loop comes to them. A rare statement of such a transaction runs with `Pipeline.server_settings`.
HOT_SETTINGS = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
HOT = LocalSettings(HOT_SETTINGS)

# For a statement that has to choose among indexes: it is planned for the tables as they are now.
PLANNED_ANEW = LocalSettings({"plan_cache_mode": "force_custom_plan"})
