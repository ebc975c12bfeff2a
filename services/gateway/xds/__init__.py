"""Envoy's discovery protocol (xDS): its messages, what is told, and to whom what has been told."""
