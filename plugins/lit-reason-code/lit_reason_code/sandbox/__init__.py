"""Programs run confined by the kernel. Nothing here needs more than Python's standard library and Linux."""
