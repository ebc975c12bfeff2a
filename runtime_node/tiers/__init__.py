"""Where an instance's code runs. One module per isolation tier, one interface."""
