"""The keys of a config, the schedule that they describe, and the flags that name one."""
