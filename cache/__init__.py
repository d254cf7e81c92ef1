"""The result cache: keys, entries, a store in memory, and one computation per key."""
