"""What every part shares: errors, plain types, frames, configuration, telemetry, rpc helpers and the coupled noise."""
