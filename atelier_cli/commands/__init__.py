"""The commands, one module a topic; each turns arguments into calls and answers into lines."""
