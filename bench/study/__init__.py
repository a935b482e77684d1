"""Whether and when JOL helps: runs in pairs, and what their differences say."""
