"""The services of AppSupervisor: the control plane, and what both sides of its calls share."""
