"""The networks themselves, one file per family; `tasks.architectures` gives them their keys."""
