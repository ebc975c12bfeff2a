"""`python -m services.cli`, the same as `appsupervisor`."""

from services.cli.main import main

main()
