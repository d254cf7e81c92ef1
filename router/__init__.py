"""The front door: tenants, tiers, the schedule, and answers that outlive single workers."""
