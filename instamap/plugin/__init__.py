"""Parts by name, their options, the hooks that plugins implement and the registry that holds them
all; no torch.
"""
