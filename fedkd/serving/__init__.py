"""The edge's HTTP service and the device's client."""
