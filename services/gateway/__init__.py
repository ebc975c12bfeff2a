"""The gateway: tells Envoy where each app answers. A client of the API alone."""
