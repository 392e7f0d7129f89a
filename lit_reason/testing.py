"""What plugin authors test with."""

from lit_reason.tiny import tiny_policy as tiny_policy
