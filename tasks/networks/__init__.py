"""The networks themselves, one file per family; `tasks.networks.architectures` gives them their keys."""
