"""The commands, one module per topic; each turns arguments into calls and answers into lines."""
