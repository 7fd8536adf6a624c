"""The marker: has Kubernetes remove the workers first that the scheduler has cordoned.

It lowers `controller.kubernetes.io/pod-deletion-cost` on the pods of cordoned workers, and on those alone, lifts the
marks that keep a node from being emptied of them, and puts both back when they are uncordoned. A worker bears the name
of its pod. One replica runs; its service account may list, watch and patch the pods of its namespace, nothing else.

Pure: `domain`. `kubernetes` speaks to the API, `service` brings both together, `cordons` asks the scheduler,
`composition` builds it.
"""
