"""Misuse a mesh as a greedy tenant or a stranger would, break it, and print what it cost: memory, and another's wait.

Each row is one function with `@row`; its load and its time are bounded, and it speaks to loopback alone. The wait is a
create-to-done of a no-op task of another tenant (to-webhook, or to-stream, where a row says so), and its median is held
against three times its median at rest. Where a row has calls refused for a while, the other tenant repeats them, and
its longest wait is held against the row's bound. A process of a service may take 300 MB; what its children take is
shown too.
"""
