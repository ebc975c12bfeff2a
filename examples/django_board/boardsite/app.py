"""What AppSupervisor is told to run: migrations first, under a lock, then the site with its static files."""

import fcntl
import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "boardsite.settings")


def create_app(context):
    from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
    from django.core.asgi import get_asgi_application
    from django.core.management import call_command

    application = get_asgi_application()
    # While an update swaps instances, the old and the new share the data: one migrates, the other waits.
    with (context.data_dir / "migrate.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        call_command("migrate", interactive=False, verbosity=0)
    return ASGIStaticFilesHandler(application)
