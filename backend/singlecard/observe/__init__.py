"""What singlecard tells while it works: log lines by topic, counters, the events behind both."""

from singlecard.observe.counters import Counters, counters
from singlecard.observe.topics import set_logs

__all__ = ["Counters", "counters", "set_logs"]
